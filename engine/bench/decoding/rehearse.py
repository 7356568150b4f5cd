"""Rehearse: one setting on a store of random weights, in a process of its own, whose peak memory is the setting's.

    python -m engine.bench.decoding.rehearse < request.json

Each round decodes with the forced routing between two measurements of plain reads, each of the bytes of one token: a disk is
faster for the first seconds after a pause. It decodes again with the experts of one token held: nothing is missing then, so
that this is the time of computing and of syncs, and the resident model is not needed.
Request: `store`, `knobs`, `trace` (a
file; null: made up), `locality` (parameters of made-up routing; null: the store's own), `window_recall` (null: the store's
own), `rounds`, `tokens`, `warm_up`. The answer is JSON on the last line.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.rehearsal import Rehearsal, read_rehearsal
from engine.cli.program import guarded
from engine.engine import load
from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.model.backend import peak_bytes
from engine.plan.footprint import footprint
from engine.routing.read import Trace, read_trace
from engine.routing.traces.recording import Recording
from engine.system.memory import disk_bytes_read
from engine.system.strict_json import from_json, to_json

from ..machine.plain_reads import PLAIN_MIB, plain_gbps
from .forced_routing import ForcedRouting, forced_ids

HELD_TOKENS, HELD_WARM_UP = 8, 2  # at most; fewer if fewer tokens are asked for


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one setting; lists have one entry a round. Raises `HeadraceError`."""
    store, knobs = Path(request["store"]), Knobs.from_mapping(request["knobs"])
    rehearsal, trace = _routing(store, request)
    recall = request["window_recall"] or list(rehearsal.window_recall)
    rounds: dict[str, list[Any]] = {
        name: []
        for name in ("plain_gbps", "tok_s", "held_s", "missing_gb", "read_gb", "disk_gb", "hit_rate", "io_ms", "sync_ms")
    }
    with load(store, knobs) as engine:
        source = engine.checkpoint
        expert_gb = source.expert_bytes / source.experts / GB
        forced = ForcedRouting(engine, trace, recall, rehearsal)
        stats = engine.stats
        nbytes = max(PLAIN_MIB << 20, round(expert_gb * GB) * source.top_k * len(source.layers))

        def plain_reads() -> float:
            return knobs.ssd_gbps or plain_gbps(source.files, knobs, nbytes)

        for _ in range(request["rounds"]):
            gbps = plain_reads()
            before = disk_bytes_read()
            seconds, stats = forced.decode(request["tokens"], warm_up=request["warm_up"])
            tokens, after = stats.tokens, disk_bytes_read()
            disk = None if before is None or after is None else (after - before) / GB / (tokens + request["warm_up"])
            rounds["plain_gbps"].append(statistics.harmonic_mean([gbps, plain_reads()]))
            rounds["tok_s"].append(tokens / seconds)
            rounds["missing_gb"].append(stats.misses * expert_gb / tokens)
            rounds["read_gb"].append(stats.bytes_read / GB / tokens)
            rounds["disk_gb"].append(disk)
            rounds["hit_rate"].append(stats.hit_rate)
            rounds["io_ms"].append(stats.io_ms / tokens)
            rounds["sync_ms"].append(stats.sync_ms / tokens)
            few, first = _held(request)
            seconds, held = forced.decode(few, warm_up=first, held=True)
            rounds["held_s"].append(seconds / held.tokens)
        return {
            **rounds, "tokens": stats.tokens, "mode": engine.mode, "mapped": forced.mapped, "knobs": engine.knobs.as_dict(),
            "cached": sum(p.slots for layer in engine.layers for p in layer.cache.pools)
            / source.experts,
            "passes_per_token": stats.passes / stats.tokens or None,
            "peak_memory_gb": peak_bytes() / GB, "mlx_peak_gb": mx.get_peak_memory() / GB,
            "predicted_peak_gb": footprint(source, knobs).predicted_peak_gb,
        }  # fmt: skip


def recording(source: Checkpoint, request: Mapping[str, Any]) -> Recording:
    """The passes of `measure` on `source`, for a replay: of each round its warm-up, its tokens, and those with experts
    held, which are marked as warm-up too. Raises `HeadraceError` as `measure` does."""
    rehearsal, trace = _routing(source.path, request)
    ids, _ = forced_ids(source, trace, rehearsal)
    first, few = request["warm_up"], sum(_held(request))
    tokens = min(request["tokens"], len(ids) - first)
    numbers = np.tile(np.concatenate([np.arange(first + tokens), np.zeros(few, int)]), request["rounds"])
    warm = np.tile(np.repeat([1, 0, 1], [first, tokens, few]), request["rounds"])
    ends = np.arange(1, len(numbers) + 1)
    passes = np.column_stack([ends, np.ones_like(ends), warm, np.zeros_like(ends)])
    return Recording("the rehearsal's routing", ids[numbers].astype(np.int32), passes)


def _routing(store: Path, request: Mapping[str, Any]) -> tuple[Rehearsal, Trace | None]:
    rehearsal = read_rehearsal(store)
    if rehearsal is None:
        raise HeadraceError(f"{store} is no rehearsal; write one with headrace rehearse")
    if request["locality"] is not None:
        rehearsal = dataclasses.replace(rehearsal, routing=request["locality"])
    return rehearsal, None if request["trace"] is None else read_trace(request["trace"])


def _held(request: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the round with experts held that are timed, and those before them."""
    return min(HELD_TOKENS, request["tokens"]), max(1, min(HELD_WARM_UP, request["warm_up"]))


def main() -> int:
    return guarded(lambda: print(to_json(measure(from_json(sys.stdin.read())))))


if __name__ == "__main__":
    sys.exit(main())
