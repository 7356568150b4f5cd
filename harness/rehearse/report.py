"""Report: the figures of a rehearsal as a JSON document, a table and the lines around it."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.bench.contender import spread
from engine.bench.decoding.decode import shares_of_ceilings
from engine.checkpoint.store.rehearsal import ABOUT
from harness.forecast.study.fit import Speed

COLUMNS = (
    "cached",
    "cache GB",
    "window",
    "tok/s",
    "forecast (80 %)",
    "GB/token",
    "hit",
    "GB (predicted)",
    "of serial",
    "of overlapped",
)


def document(
    facts: Mapping[str, Any],
    routing: str,
    answers: Sequence[tuple[Mapping[str, Any], Speed | None]],
    unfinished: int = 0,
) -> dict[str, Any]:
    """All figures of `answers`, each with the forecast before it; `unfinished` counts the settings without an answer.
    `compute_ms` is the time of a token with no expert missing, of the fastest setting: the ceilings are strict."""
    compute = min(float(np.median(answer["held_s"])) for answer, _ in answers)
    return {
        "about": ABOUT, **facts, "routing": routing, "mapped": answers[0][0]["mapped"], "mode": answers[0][0]["mode"],
        "plain_gbps": spread([gbps for answer, _ in answers for gbps in answer["plain_gbps"]]), "compute_ms": compute * 1e3,
        "rows": [_row(answer, compute) | _forecast(speed) for answer, speed in answers],
        "unfinished": unfinished,
    }  # fmt: skip


def _row(answer: Mapping[str, Any], compute: float) -> dict[str, Any]:
    speed, io = np.array(answer["tok_s"]), np.array(answer["missing_gb"]) / np.array(answer["plain_gbps"])
    seen = [gb for gb in answer["disk_gb"] if gb is not None]
    return {
        "about": ABOUT, "cached": answer["cached"], "cache_gb": answer["knobs"]["cache_gb"],
        "sync_window": answer["knobs"]["sync_window"], "decode_tok_s": spread(answer["tok_s"]), "tokens": answer["tokens"],
        "read_gb_per_token": float(np.median(answer["read_gb"])),
        "missing_gb_per_token": float(np.median(answer["missing_gb"])),
        "disk_gb_per_token": float(np.median(seen)) if seen else None, "hit_rate": answer["hit_rate"][-1],
        "io_ms_per_token": float(np.median(answer["io_ms"])), "sync_ms_per_token": float(np.median(answer["sync_ms"])),
        "held_ms_per_token": float(np.median(answer["held_s"])) * 1e3, "passes_per_token": answer["passes_per_token"],
        "peak_memory_gb": answer["peak_memory_gb"], "mlx_peak_gb": answer["mlx_peak_gb"],
        "predicted_peak_gb": answer["predicted_peak_gb"], **shares_of_ceilings(speed, io, np.full(len(speed), compute)),
        "knobs": answer["knobs"],
    }  # fmt: skip


def _forecast(speed: Speed | None) -> dict[str, Any]:
    """The forecast as lower end, middle and upper end; None without one."""
    return {"forecast_tok_s": None if speed is None else [*speed.interval]}


def print_report(found: Mapping[str, Any]) -> None:
    """Print what ran, the ceilings, and one row per setting."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 130, highlight=False, soft_wrap=True)
    low, middle, high = found["plain_gbps"]
    shared = "" if found["distinct_layers"] == found["layers"] else (
        f"; {found['distinct_layers']} layers have records of their own, the others share them"
    )  # fmt: skip
    for line in (
        found["model"],
        f"{found['layers']} layers of {found['experts']} experts of {found['expert_mb']:.3g} MB, top-{found['top_k']}: "
        f"{found['full_experts_gb']:.4g} GB of experts, here {found['disk_gb']:.4g} GB on the disk{shared}",
        f"routing: {found['routing']}" + (f" ({found['mapped']})" if found["mapped"] else ""),
        f"{found['mode']}; plain reads {middle:.3g} GB/s ({low:.3g} .. {high:.3g}); a token without a cache reads "
        f"{found['gb_per_token_without_cache']:.3g} GB",
        f"ceilings: serial 1/(io + compute), overlapped 1/max(io, compute); compute is {found['compute_ms']:.3g} ms, the "
        "fastest setting with no expert missing",
        *notes(found),
    ):
        console.print(line, markup=False)
    table = Table(box=None)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    for row in found["rows"]:
        table.add_row(*_cells(row))
    console.print(table)


def notes(found: Mapping[str, Any]) -> list[str]:
    """What a reader of the figures must know."""
    made = []
    if found["unfinished"]:
        made.append(f"note: {found['unfinished']} of {found['unfinished'] + len(found['rows'])} settings have no figures")
    shared = found["distinct_layers"] < found["layers"]
    if shared and any(row["knobs"]["io_mode"] != "direct" for row in found["rows"]):
        made.append(
            "note: with io_mode=buffered the page cache holds shared records for several layers at once, so that reads are "
            "faster than those of the real model; use io_mode=direct"
        )
    return made


def _cells(row: Mapping[str, Any]) -> list[str]:
    window = {0: "all", -1: "auto"}.get(row["sync_window"], str(row["sync_window"]))
    return [
        f"{row['cached']:.1%}", f"{row['cache_gb']:.4g}", window, f"{row['decode_tok_s'][1]:.3g}",
        "-" if row["forecast_tok_s"] is None else "{1:.3g} ({0:.3g}..{2:.3g})".format(*row["forecast_tok_s"]),
        f"{row['read_gb_per_token']:.3g}", "-" if row["hit_rate"] is None else f"{row['hit_rate']:.3f}",
        f"{row['peak_memory_gb']:.3g} ({row['predicted_peak_gb']:.3g})",
        *("{1:.2f} ({0:.2f}..{2:.2f})".format(*row[name]) for name in ("share_of_serial", "share_of_overlapped")),
    ]  # fmt: skip
