"""Counts of trials and runs, and the progress of a search: one definition for the budget and for everything that is
printed.

A trial of the budget is a setting that ran, whatever its status. The reference is counted separately, and so are settings
that were pruned by arithmetic and never ran (`columns.NOT_RUN`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.results.columns import NOT_RUN

from .runs.timeline import order

if TYPE_CHECKING:
    import pandas as pd

Row = Mapping[str, Any]
AGAIN = {"repeat": "repeats", "confirm": "confirmations", "sentinel": "sentinels", "again": "repeats of suspect runs"}
RECENT = 16  # runs that the remaining time is estimated from


@dataclass(frozen=True)
class Counts:
    """The counts of a study's rows. The dictionaries have the most frequent first."""

    trials: int
    fates: dict[str, int]  # by status of the trial's first run
    not_run: dict[str, int]  # pruned settings, by status
    reference: str | None  # status of the first run; None: not measured
    runs: int  # all that ran, including the reference's
    again: dict[str, int]  # runs after a trial's first, by origin

    def __str__(self) -> str:
        parts = [_many(self.trials, "trials") + _listed(self.fates)]
        if self.not_run:
            parts.append(_many(sum(self.not_run.values()), "settings") + " not run" + _listed(self.not_run))
        if self.reference:
            parts.append("reference measured" if self.reference == "ok" else f"reference {self.reference}")
        more = ", ".join(_many(n, AGAIN.get(origin, f"{origin} runs")) for origin, n in self.again.items())
        return ", ".join(parts) + (f"; {more}" if more else "")


def count(rows: Sequence[Row] | pd.DataFrame) -> Counts:
    """The counts of rows or of a frame of rows. A trial belongs to the rows that contain its first run."""
    some = rows if isinstance(rows, Sequence) else rows[["run", "status", "origin"]].to_dict("records")
    first = [r for r in some if not (r["run"] or 0) > 0]
    again = Counter(r["origin"] for r in some if (r["run"] or 0) > 0)
    statuses = Counter(r["status"] for r in first if r["origin"] != "reference")
    fates = {status: n for status, n in statuses.most_common() if status not in NOT_RUN}
    not_run = {status: n for status, n in statuses.most_common() if status in NOT_RUN}
    reference = next((r["status"] for r in first if r["origin"] == "reference"), None)
    made = sum(r["status"] not in NOT_RUN for r in some)
    return Counts(sum(fates.values()), fates, not_run, reference, made, dict(again.most_common()))


@dataclass(frozen=True)
class Progress:
    """The progress of a search: trials of the budget, and runs of a round's confirmation once it has begun."""

    trials_done: int
    trials_wanted: int
    confirm_round: int | None = None
    confirm_done: int | None = None
    confirm_most: int | None = None  # fewer may suffice
    runs_left: int = 0  # trials and confirmations, at most

    def __str__(self) -> str:
        trials = f"{self.trials_done} of {_many(self.trials_wanted, 'trials')}"
        return f"{trials}, {self.confirming}" if self.confirming else trials

    @property
    def confirming(self) -> str:
        """`confirming 5 of at most 12`; empty before confirmation."""
        if self.confirm_done is None:
            return ""
        most = "" if self.confirm_done == self.confirm_most else "at most "
        return f"confirming {self.confirm_done} of {most}{self.confirm_most}"


def progress(known: Sequence[Row], own: Sequence[Row], wanted: int, share: float, confirming: int | None = None) -> Progress:
    """The progress of a search for `wanted` trials, with up to `share` times as many runs for confirmation.

    known: all rows; own: rows of this machine, which confirms its own trials; confirming: the round in confirmation.
    """
    done = count(known).trials
    now = confirming or max((r["round"] for r in own), default=1)
    confirmed, most = confirmations(own, now), confirm_budget(own, now, share)
    left = round(max(0, wanted - done) * (1 + share)) + max(0, most - confirmed)
    if confirming is None:
        return Progress(done, wanted, runs_left=left)
    return Progress(done, wanted, confirming, confirmed, most, left)


def confirm_budget(rows: Sequence[Row], round_number: int, share: float) -> int:
    """The number of runs that a round's confirmation may use."""
    return round(share * count([r for r in rows if r["round"] == round_number]).trials)


def confirmations(rows: Sequence[Row], round_number: int) -> int:
    """The number of runs that a round's confirmation has used."""
    return sum(r["origin"] == "confirm" and r["round"] == round_number for r in rows)


def left_s(rows: Sequence[Row], runs_left: int) -> float | None:
    """Time for `runs_left` trials and confirmations, in s; None before the first run.

    It is based on the last `RECENT` runs, including sentinels, waits, pauses and all else between them.
    """
    made = sorted((r for r in rows if r["status"] not in NOT_RUN and r["started_at"]), key=order)
    recent = made[-RECENT:]
    counted = sum(not r["run"] or r["origin"] == "confirm" for r in recent)
    took = sum(_seconds(r, name) for r in recent for name in ("wall_s", "waited_s", "cool_down_s", "between_s", "lost_s"))
    return took / counted * runs_left if counted else None


def _seconds(row: Row, name: str) -> float:
    """A time of a row; 0 where it has none, as older rows do."""
    value = row.get(name)
    return 0.0 if value is None or value != value else float(value)


def _many(n: int, words: str) -> str:
    """`3 repeats of suspect runs`, `1 repeat of suspect runs`."""
    head, _, tail = words.partition(" ")
    return f"{n} {head if n != 1 else head.removesuffix('s')}{' ' + tail if tail else ''}"


def _listed(counts: Mapping[str, int]) -> str:
    """` (23 ok, 1 crash)`; one kind without its number."""
    if len(counts) == 1:
        return f" ({next(iter(counts))})"
    return f" ({', '.join(f'{n} {name}' for name, n in counts.items())})" if counts else ""
