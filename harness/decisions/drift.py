"""Drift: the sentinel, a control run of the default setting, shows whether the machine's speed has changed.

A machine that became hot or busy slows all settings alike. If the sentinel's speed has changed, the runs since the
sentinel before it are suspect until they are measured again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from harness.analysis.runs.timeline import order

Row = Mapping[str, Any]
SIGNIFICANT = 3.0  # standard deviations of a single run


def sentinel_trial(rows: Sequence[Row]) -> int | None:
    """The trial used as sentinel: the first anchor whose first run is ok. None before there is one."""
    ran = (r["trial"] for r in rows if r["origin"] == "anchor" and r["run"] == 0 and r["status"] == "ok")
    return min(ran, default=None)


def due(rows: Sequence[Row], trial: int | None, every: int) -> bool:
    """Whether at least `every` runs have ended on this machine since the last one of trial `trial`."""
    if not every or trial is None:
        return False
    ran = sorted((r for r in rows if r["wall_s"]), key=order)
    since = next((i for i, r in enumerate(reversed(ran)) if r["trial"] == trial), len(ran))
    return since >= every


def check_drift(row: dict[str, Any], rows: Sequence[Row], drift: float, noise: float) -> None:
    """Set `drift`, `drift_since` and `drift_sequence` in a sentinel's row.

    `drift` is its speed divided by the median of earlier good sentinel runs on this machine. If it is off by more than the
    limit `drift` and more than its noise allows, `drift_since` and `drift_sequence` are those of the sentinel run before.
    """
    before = [
        r for r in rows
        if r["trial"] == row["trial"] and r["status"] == "ok" and r["machine"] == row["machine"] and r["suspect"] is None
    ]  # fmt: skip
    if row["status"] != "ok" or not before:
        return
    row["drift"] = row["decode_tok_s"] / statistics.median(r["decode_tok_s"] for r in before)
    if abs(math.log(row["drift"])) > max(math.log(1 + drift), SIGNIFICANT * noise):
        last = max(before, key=order)
        row["drift_since"], row["drift_sequence"] = last["started_at"], last["sequence"]


def drifted(rows: Sequence[Row]) -> bool:
    """Whether the last sentinel run drifted, so that runs made now would be suspect too."""
    marks = [r for r in rows if r["drift"] is not None]
    return bool(marks) and max(marks, key=order)["drift_since"] is not None
