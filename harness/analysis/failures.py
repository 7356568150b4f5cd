"""Failures: the cause of a failed run, and how many of the newest runs failed in a row with the same cause."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from harness.results.columns import NOT_RUN, STATUSES

from .runs.timeline import order

FAILED = tuple(s for s in STATUSES if s not in ("ok", "stopped", *NOT_RUN))
VARIES = re.compile(  # parts that differ between two failures with one cause
    r"(?P<path>(?<![\w.])[~.]{0,2}/[^\s:,;)'\"]+)"
    r"|(?P<hash>\b(?=[0-9a-f]*\d)[0-9a-f]{8,}\b)"
    r"|(?P<number>0x[0-9a-fA-F]+|\d+(?:\.\d+)?(?:e[-+]?\d+)?)"
)


def cause(row: Mapping[str, Any]) -> str:
    """The cause of a failed row: its status, and the last line of its reason without numbers, hashes and paths."""
    lines = str(row["status_reason"] or "").strip().splitlines()
    reason = VARIES.sub(lambda m: "PATH" if m["path"] else "N", lines[-1]) if lines else ""
    reason = " ".join(reason.split())[:120]
    return f"{row['status']}: {reason}" if reason else str(row["status"])


def streak(rows: Sequence[Mapping[str, Any]], since: int = 0) -> tuple[int, str]:
    """Number of the newest runs that failed in a row with one cause, and that cause; (0, "") if the last run succeeded.

    `since`, the sequence number of the command's first row, excludes earlier runs, so that a search can be resumed once the
    cause is fixed. Rows that were not run are ignored.
    """
    ran = [r for r in rows if r["status"] not in NOT_RUN and r["started_at"] is not None]
    ran = [r for r in ran if (r.get("sequence") or 0) >= since]
    ran.sort(key=order, reverse=True)
    count, first = 0, ""
    for row in ran:
        if row["status"] not in FAILED or (count and cause(row) != first):
            break
        count, first = count + 1, cause(row)
    return count, first
