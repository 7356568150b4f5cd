"""The sentinel: the default configuration, measured again through the night, so that a drift of the machine is seen.

A machine that grew hot or busy slows all settings alike; the sentinel says so, and the runs since the sentinel before are
suspect until they are measured again.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
SIGNIFICANT = 3.0  # standard deviations of a single run


def sentinel_trial(rows: Sequence[Row]) -> int | None:
    """The trial that stands sentinel: the first anchor that ran well. None before there is one."""
    ran = (r["trial"] for r in rows if r["origin"] == "anchor" and r["run"] == 0 and r["status"] == "ok")
    return min(ran, default=None)


def due(rows: Sequence[Row], trial: int | None, every: int) -> bool:
    """Whether `every` runs were made here since trial `trial` was measured last."""
    if not every or trial is None:
        return False
    ran = sorted((r for r in rows if r["wall_s"]), key=lambda r: r["started_at"])
    since = next((i for i, r in enumerate(reversed(ran)) if r["trial"] == trial), len(ran))
    return since >= every


def judge_sentinel(row: dict[str, Any], rows: Sequence[Row], drift: float, noise: float) -> None:
    """Put into a sentinel's row how far it is off the median of those before it on this machine, and if it is off by more
    than `drift` and than its noise, since when: from the sentinel before on."""
    before = [
        r for r in rows
        if r["trial"] == row["trial"] and r["status"] == "ok" and r["machine"] == row["machine"] and r["suspect"] is None
    ]  # fmt: skip
    if row["status"] != "ok" or not before:
        return
    row["drift"] = row["decode_tok_s"] / statistics.median(r["decode_tok_s"] for r in before)
    if abs(math.log(row["drift"])) > max(math.log(1 + drift), SIGNIFICANT * noise):
        row["drift_since"] = max(r["started_at"] for r in before)


def drifted(rows: Sequence[Row]) -> bool:
    """Whether the last sentinel was off: what is measured now would be suspect as well."""
    marks = [r for r in rows if r["drift"] is not None]
    return bool(marks) and max(marks, key=lambda r: r["started_at"])["drift_since"] is not None
