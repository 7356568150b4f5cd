"""Folders of searches with a known truth, for comparisons: written as one file, without an engine."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from synthetic import searched

from harness.results.columns import SCHEMA_VERSION
from harness.results.parquet import SCHEMA, write_table

FACTS = {
    "model": "m", "architecture": "qwen3_moe", "model_fingerprint": "2-" + "a" * 16, "eval_texts": "texts",
    "eval_fingerprint": "b" * 16, "machine": "one", "cpu": "M2 Max", "cores": 12, "machine_memory_gb": 96.0,
    "backend": "metal", "os": "macOS 15", "mlx": "0.32.4", "mlx_lm": "0.32.2", "python": "3.12.1", "optuna": "5.0.0",
    "headrace_version": "0.3.0", "engine": "engine",
    "warm_up_tokens": 8, "timed_tokens": 128, "page_cache": "as_is", "space": "s", "seed": 0,
    "sampler": "tpe", "objectives": "decode_tok_s,peak_memory_gb,perplexity", "limit_gb": 72.0,
}  # fmt: skip
TRIALS, TOP, FRESH = 14, 3, 3  # below the points from which a posterior is fitted, so that a comparison is quick
Values = dict[str, Any]


def truth(values: Values) -> tuple[float, float, float]:
    """Speed rises with cache and threads, memory with the cache; bits set the perplexity."""
    bits = values.get("expert_bits") or 8
    speed = 20 + 300 * values["cache_gb"] + 4 * min(values["read_threads"], 4) + 16 / bits
    return speed, 0.1 + values["cache_gb"] * bits / 8, 4 + 12 * 2.0**-bits


def study(
    folder: Path, seed: int = 0, *, factor: float | Callable[[Values], float] = 1.0, noise: float = 0.02,
    memory: float = 1.0, settings: int = 0, config: dict[str, Any] | None = None, **facts: Any,
) -> Path:  # fmt: skip
    """A finished search in `folder`: a reference, the default with repeats, and fresh runs of the fastest.

    factor: of all speeds, or a function of a setting. noise: relative standard deviation of a run's speed. seed: of the
    noise. settings: seed of the settings.
    """
    rng = np.random.default_rng(1000 + seed)
    rows = searched(settings, lambda values, _: truth(values), TRIALS)
    times = factor if callable(factor) else lambda _: factor
    for row in rows:
        row["decode_tok_s"] *= times(row) * math.exp(noise * rng.normal())
        row["peak_memory_gb"] *= memory * math.exp(0.001 * rng.normal())
    rows[0]["origin"] = "anchor"
    true = {row["trial"]: truth(row)[0] * times(row) for row in rows}
    fastest = sorted(rows, key=lambda row: -row["decode_tok_s"])[:TOP]
    for row in [rows[0], *fastest, *fastest[:1]]:
        n = sum(r["trial"] == row["trial"] for r in rows)
        for run in range(n, n + FRESH):
            speed = true[row["trial"]] * math.exp(noise * rng.normal())
            rows.append({**row, "run": run, "origin": "confirm", "decode_tok_s": speed})
    whole = {**rows[0], **dict.fromkeys(("cache_gb", "evict_half_life", "read_threads", "read_block_kib", "io_mode"))}
    speed = 90 * times(rows[0]) * math.exp(noise * rng.normal())
    rows.append({**whole, "trial": 0, "origin": "reference", "expert_bits": None, "decode_tok_s": speed, "perplexity": 4.05})
    given = {
        **FACTS,
        **facts,
        "study": folder.name,
        "status": "ok",
        "round": 1,
        "started_at": datetime(2026, 1, 1, tzinfo=UTC),
    }
    table = [
        {**row, **given, "row_id": f"{folder}-{seed}-{i}", "schema_version": SCHEMA_VERSION} for i, row in enumerate(rows)
    ]
    folder.mkdir(parents=True)
    write_table(folder / "trials.parquet", pa.Table.from_pylist(table, schema=SCHEMA))
    identity = {"space": {"search_space": {"cache_gb": [0.005, 0.04]}, "knobs": {}}, "constraints": []}
    recommend = {"max_loss": 0.05, "speed_share": 0.9, "memory_gb": None}
    confirm = {"share": 0.5, "runs": 2, "within": 0.05, "error": 0.03}
    manifest = {"version": SCHEMA_VERSION, "identity": identity, "config": {"recommend": recommend, "confirm": confirm}}
    (folder / "manifest.json").write_text(json.dumps({**manifest, **(config or {})}))
    return folder
