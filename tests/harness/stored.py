"""Complete rows and folders of rows for tests."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.results.columns import NAMES, SCHEMA_VERSION
from harness.results.writing import write_row, write_tokens


def row(trial: int, **values: Any) -> dict[str, Any]:
    run = values.get("run", 0)
    given = {"row_id": f"id-{trial}-{run}", "schema_version": SCHEMA_VERSION, "run": run, "round": 1,
             "trial": trial, "status": "ok", "origin": "sampler", "eval_fingerprint": "a" * 16, "study": "demo",
             "model": "m", "device": "d", "decode_tok_s": 10.0 + trial, "peak_memory_gb": 1.0 + trial, "perplexity": 4.0,
             "cache_gb": 0.1, "evict_half_life": 16.0, "prefetch_depth": 0, "read_block_kib": 64, "read_threads": 1 + trial,
             "io_mode": "direct", "started_at": datetime(2026, 1, 1, tzinfo=UTC)}  # fmt: skip
    return {**dict.fromkeys(NAMES), **given, **values}


ONE = {"machine": "one", "cpu": "M2 Max", "cores": 12, "objectives": "decode_tok_s,peak_memory_gb,perplexity"}


TWO = {**ONE, "machine": "two"}


def fill(folder: Path, trials: range, machine: dict[str, Any], **values: Any) -> str:
    for t in trials:
        row_id = f"{machine['machine']}-{t}"
        write_tokens(folder, row_id, t, 0, [1.0 + t, 2.0])
        write_row(folder, row(t, **{"row_id": row_id, **machine, **values}))
    return str(folder)
