"""Ceiling: the speed that a setting cannot exceed, by arithmetic, because its reads are held to a bandwidth.

The judge's tokens are forced, so that all lossless settings have the same routing; it is taken once, in a process of its
own, and kept in the user's cache folder. What a setting has to read while the clock runs is at least what Belady's optimum
misses with its slots, bank by bank, even if each text's prefill had left the best experts there; and an expert takes at
least its stored bytes. A disk held to `ssd_gbps` serves one read after the other from when it was asked, and has no credit
from before: what was asked for before a text's first decoded token lies in a slot, and counts as there. Computing and
waiting count as nothing, so the bound is near only where reading is most of a token.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import mlx.core as mx
import numpy as np

from engine.cache.eviction import belady_misses
from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError, first_line
from engine.knobs import CACHE_DEPENDENT, GB, Knobs
from engine.measure.judge import Judge, Text
from engine.measure.protocol import Protocol
from engine.routing.profile import routing_profile
from engine.system.user_cache import cached_file, compute_apart, store_in_cache

from .banks import compute_dtype, plan_banks
from .bits import needs_routing

FORMAT = 1  # raised when the file or what is in it changes its meaning
MARGIN = 0.1  # of the misses, for what other widths change about the routing: with kimi_mini at most 0.04 less
RESIDENT_BITS = 4  # below it kimi_mini routes otherwise altogether, with up to 0.7 fewer misses
PAUSE_S = 1e-3  # most that passes between two tokens off the clock, in which reads of prefetch may go on


def ceiling_tok_s(
    checkpoint: str | Path | Checkpoint, knobs: Knobs, judge: Judge, protocol: Protocol | None = None
) -> float | None:
    """What `decode_tok_s` of `Engine.measure(judge, protocol)` with these knobs cannot exceed, tokens/s, unless it is ended
    early. None where nothing can be said: no bandwidth is held, nothing has to be read, or a knob changes which experts are
    chosen or read (`top_k`, those that depend on the cache, and `resident_bits` below 4).

    The first call for a judge and number of timed tokens takes a pass over them, in a process of its own. Raises what `load`
    would: `KnobError`, `CheckpointError`, `JudgeError`; and `HeadraceError` if that pass fails.
    """
    elsewhere = {*CACHE_DEPENDENT, "top_k"}
    if knobs.cache_gb is None or knobs.ssd_gbps is None or not elsewhere.isdisjoint(knobs.lossy):
        return None
    if knobs.resident_bits is not None and knobs.resident_bits < RESIDENT_BITS:
        return None
    source = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    profile = routing_profile(source) if needs_routing(knobs) else None
    banks = plan_banks(source, knobs, profile=profile)
    routing = _routing(routing_file(source, judge, protocol or Protocol()), source, judge, protocol or Protocol())
    nbytes: float = sum(
        routing.misses(bank.layer, tuple(bank.members.tolist()), bank.slots) * bank.form.expert_bytes for bank in banks
    )
    if knobs.lossy or knobs.prefill_chunk != Knobs.prefill_chunk:
        nbytes *= 1 - MARGIN
    seconds = nbytes / (knobs.ssd_gbps * GB)
    if knobs.prefetch != "off" or knobs.sync_window != 1:
        seconds -= routing.tokens * PAUSE_S
    return routing.tokens / seconds if seconds > 0 else None


class Routing:
    """The experts of every timed token, int [tokens, layers, top_k]; `texts` are the tokens that each text has of them."""

    def __init__(self, experts: np.ndarray, texts: np.ndarray) -> None:
        self.tokens = len(experts)
        self._experts = experts
        self._ends = np.cumsum(texts)[:-1]
        self.misses = functools.cache(self._misses)

    def _misses(self, layer: int, members: tuple[int, ...], slots: int) -> int:
        """The fewest misses of a bank of these experts of a layer with so many slots, over all texts."""
        if slots >= len(members):
            return 0
        chosen = self._experts[:, layer]
        own = np.isin(chosen, members)
        return sum(
            sum(belady_misses([ids[its].tolist() for ids, its in zip(*part, strict=True)], slots, warm=True))
            for part in zip(np.split(chosen, self._ends), np.split(own, self._ends), strict=True)
        )


def routing_file(checkpoint: Checkpoint, judge: Judge, protocol: Protocol) -> Path:
    """Where the routing of this checkpoint on the protocol's timed tokens of this judge is kept."""
    identity = [FORMAT, judge.fingerprint, protocol.timed_tokens, f"{compute_dtype()} {mx.default_device()}",
                version("mlx"), version("mlx-lm")]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return cached_file(f"judged-{checkpoint.fingerprint}-{digest}.npz")


_read: dict[Path, Routing] = {}


def _routing(file: Path, checkpoint: Checkpoint, judge: Judge, protocol: Protocol) -> Routing:
    """The routing in `file`; taken now if it is not there."""
    if file not in _read:
        if not file.exists():
            texts = [[t.name, t.kind, t.prompt, t.continuation] for t in judge.texts]
            request = {"checkpoint": str(checkpoint.path), "texts": texts, "timed_tokens": protocol.timed_tokens}
            compute_apart("the routing that a ceiling needs", "engine.plan.ceiling", given=json.dumps(request))
        try:
            with np.load(file) as arrays:
                _read[file] = Routing(arrays["experts"], arrays["texts"])
        except Exception as e:  # numpy and zipfile raise what comes of damaged bytes
            raise HeadraceError(f"the judge's routing {file} is damaged ({first_line(e)}); remove it") from e
    return _read[file]


def take_routing(checkpoint: Checkpoint, judge: Judge, protocol: Protocol, knobs: Knobs | None = None) -> bytes:
    """The content of the file: the routing with `knobs`, by default as stored and with as much memory as there is."""
    import pandas as pd

    from engine.engine import load
    from engine.quality.reference import reference_knobs

    knobs = knobs or reference_knobs(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.parquet"
        with load(checkpoint.path, knobs) as engine, engine.trace(trace):
            engine.measure(judge, Protocol(warm_up_tokens=0, timed_tokens=protocol.timed_tokens, score=False))
        rows = pd.read_parquet(trace, columns=["token", "phase", "layer", "expert"])
    decoded = rows[rows["phase"] == "decode"].sort_values(["token", "layer"], kind="stable")
    tokens = decoded["token"].unique()
    starts = np.flatnonzero(np.diff(tokens, prepend=-2) > 1)  # behind every prompt
    content = io.BytesIO()
    np.savez_compressed(
        content,
        experts=decoded["expert"].to_numpy(np.int16).reshape(len(tokens), len(checkpoint.layers), -1),
        texts=np.diff(starts, append=len(tokens)),
    )
    return content.getvalue()


def main() -> int:
    """The child of `ceiling_tok_s`: reads the request, writes the file; 2 after an error, which is one line."""
    request = json.load(sys.stdin)
    judge, protocol = Judge(tuple(Text(*text) for text in request["texts"])), Protocol(timed_tokens=request["timed_tokens"])
    try:
        checkpoint = Checkpoint.open(request["checkpoint"])
        store_in_cache(routing_file(checkpoint, judge, protocol), take_routing(checkpoint, judge, protocol))
    except HeadraceError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
