"""bench memory: predicted and measured peak memory of several settings, each in its own process, and the speed under several
limits of MLX's cache of freed buffers."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from engine.checkpoint.checkpoint import Checkpoint
from engine.engine import load
from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.plan.footprint import footprint, weights_of
from engine.system.memory import peak_memory_bytes
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import child_environment

WITHIN = 0.1
DECODED = 24  # tokens
TURN = 32  # tokens of a turn with --cache-limits


def settings(source: Checkpoint, count: int, seed: int = 0) -> list[tuple[dict[str, Any], int]]:
    """Return `count` random settings and contexts, the resident model first."""
    rng = np.random.default_rng(seed)
    most = weights_of(source, Knobs()).all_experts_gb
    found: list[tuple[dict[str, Any], int]] = [({}, 512)]
    while len(found) < count:
        io_mode = str(rng.choice(["buffered", "direct"]))
        knobs: dict[str, Any] = {"prefill_chunk": int(rng.choice([32, 128, 512])), "io_mode": io_mode}
        bits = [None, *(b for b in source.levels or (3, 4, 8) if b < source.expert_bits)]
        knobs["expert_bits"] = bits[int(rng.integers(len(bits)))]
        least = weights_of(source, Knobs(expert_bits=knobs["expert_bits"])).one_token_gb
        knobs["cache_gb"] = float(np.exp(rng.uniform(np.log(least * 1.05), np.log(max(most, least * 2)))))
        found.append(({k: v for k, v in knobs.items() if v is not None}, int(rng.choice([128, 512, 1024]))))
    return found[:count]


def bench_memory(path: Path, count: int) -> dict[str, Any]:
    """Measure `count` settings of the checkpoint and print prediction, measurement and their ratio for each."""
    source = Checkpoint.open(path)
    rows: list[dict[str, Any]] = []
    print(f"{'predicted MB':>14}{'measured MB':>13}{'ratio':>7}  context  knobs")
    for given, context in settings(source, count):
        predicted = footprint(source, Knobs.from_mapping(given), context)
        measured = _in_its_own_process(path, given, context)
        ratio = predicted.predicted_peak_gb / measured["peak_gb"]
        rows.append({
            "knobs": given, "context": context, "predicted_gb": predicted.predicted_peak_gb,
            "measured_gb": measured["peak_gb"], "mlx_peak_gb": measured["mlx_peak_gb"], "ratio": ratio,
            "parts_gb": vars(predicted.parts_gb),
        })  # fmt: skip
        shown = ", ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in given.items())
        print(f"{predicted.predicted_peak_gb * 1e3:14.1f}{measured['peak_gb'] * 1e3:13.1f}{ratio:7.2f}{context:9}  {shown}")
    share = sum(abs(row["ratio"] - 1) <= WITHIN for row in rows) / len(rows)
    print(f"{share:.0%} of the settings within {WITHIN:.0%}")
    return {"bench": "memory", "model": source.name, "share_within": share, "within": WITHIN, "rows": rows}


def bench_cache_limits(path: Path, knobs: Knobs, limits_mb: Sequence[float], rounds: int) -> dict[str, Any]:
    """Compare the time of prefill and decoding under limits of MLX's cache of freed buffers, in turns in one process."""
    rows: dict[float, dict[str, list[float]]] = {mb: {"prefill_ms": [], "decode_ms": []} for mb in limits_mb}
    with load(path, knobs) as engine:
        vocab = int(engine.checkpoint.text_config["vocab_size"])
        ids = np.random.default_rng(0).integers(0, vocab, 256).tolist()
        engine.forward.begin()
        for _ in range(rounds):
            for mb, times in rows.items():
                mx.set_cache_limit(int(mb * 1e6))
                cache = make_prompt_cache(engine.model)
                begin = time.perf_counter()
                list(engine.forward.prefill(ids, cache))
                times["prefill_ms"].append((time.perf_counter() - begin) * 1e3)
                for token in ids[:TURN]:
                    begin = time.perf_counter()
                    engine.forward.decode(token, cache)
                    times["decode_ms"].append((time.perf_counter() - begin) * 1e3)
    shown = [
        {
            "limit_mb": mb,
            **{name: statistics.median(t) for name, t in times.items()},
            "best_decode_ms": min(times["decode_ms"]),
        }
        for mb, times in rows.items()
    ]
    for row in shown:
        print("  ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return {"bench": "memory", "rows": shown}


def measure_peak(path: Path, given: dict[str, Any], context: int) -> dict[str, float]:
    """Prefill a random text of `context` tokens and decode a few; return the peaks of this process and of MLX, GB."""
    with load(path, Knobs.from_mapping(given)) as engine:
        _ = engine.tokenizer
        vocab = int(engine.checkpoint.text_config["vocab_size"])
        ids = np.random.default_rng(0).integers(0, vocab, context).tolist()
        engine.forward.begin()
        cache = make_prompt_cache(engine.model)
        for _logits in engine.forward.prefill(ids[:-DECODED], cache):
            pass
        for token in ids[-DECODED:]:
            engine.forward.decode(token, cache)
        return {"peak_gb": peak_memory_bytes() / GB, "mlx_peak_gb": mx.get_peak_memory() / GB}


def _in_its_own_process(path: Path, given: dict[str, Any], context: int) -> dict[str, float]:
    request = to_json([str(path), given, context])
    command = [sys.executable, "-m", "engine.bench.memory"]
    done = subprocess.run(
        command, input=request, capture_output=True, encoding="utf-8", env=child_environment(), check=False
    )  # fmt: skip
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        raise HeadraceError(f"bench memory: a setting could not be measured ({last}); try it with python -m engine measure")
    return dict(from_json(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    where, its_knobs, tokens = from_json(sys.stdin.read())
    print(to_json(measure_peak(Path(where), its_knobs, tokens)))
