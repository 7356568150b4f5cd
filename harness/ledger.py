"""`ledger.tsv`: one line a run, with one sentence on what differed from the front as it was and what came of it.

The Parquet rows are the truth. The ledger is made from them alone, so that a line cut short by a kill is mended by writing
it again: `mend` before the search goes on, `append` after each row. A line is written, flushed and synced in one piece.
"""

from __future__ import annotations

import itertools
import math
import os
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine import Knobs
from engine.knobs import DEFAULTS

from .columns import SHORT, Direction
from .rows import sync_folder
from .space import effective

Row = Mapping[str, Any]
NAME = "ledger.tsv"
HEAD = ("row_id", "trial", "run", "round", "origin")


def header(objectives: Mapping[str, Direction]) -> str:
    """The first line of the file."""
    return "\t".join([*HEAD, *objectives, "status", "sentence"])


def ledger_line(row: Row, rows_before: Sequence[Row], objectives: Mapping[str, Direction]) -> str:
    """A row's line, without its end: identity, objectives (`-` without a figure), what became of it, and the sentence.

    The word is the row's status, of an ok row: infeasible (a constraint is broken), suspect, its origin if it measured a
    trial once more, else kept (on the front of the rows before and itself) or dominated.
    """
    past = Past(objectives)
    for before in rows_before:
        past.add(before)
    return past.line(row)


def append(folder: Path, row: Row, rows_before: Sequence[Row], objectives: Mapping[str, Direction]) -> None:
    """Add a row's line to the file that `mend` has made."""
    with open(folder / NAME, "a", encoding="utf-8") as f:
        f.write(ledger_line(row, rows_before, objectives) + "\n")
        f.flush()
        os.fsync(f.fileno())


def mend(folder: Path, rows: Sequence[Row], objectives: Mapping[str, Direction]) -> None:
    """Make the file agree with the rows, in the order in which they were measured: lines that are whole stay as they are,
    one cut short, doubled or without a row goes, one that is missing is written. It is replaced in one piece."""
    path = folder / NAME
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    whole = {line.split("\t")[0]: line for line in old.splitlines(keepends=True)[1:] if _is_whole(line, objectives)}
    if not old.startswith(header(objectives) + "\n"):
        whole = {}
    ordered = sorted(rows, key=_when)
    lines, past = [header(objectives)], Past(objectives)
    for row in ordered:
        kept = whole.get(str(row["row_id"]))
        lines.append(kept.rstrip("\n") if kept else past.line(row))
        past.add(row)
    new = "\n".join(lines) + "\n"
    if new != old:
        tmp = path.with_name(f".{NAME}.tmp")
        with open(tmp, "w", encoding="utf-8") as f:
            f.write(new)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
        sync_folder(folder)


class Past:
    """What a line needs of the rows before it: their front, each knob's values, each trial's first run."""

    def __init__(self, objectives: Mapping[str, Direction]) -> None:
        self._objectives = objectives
        self._signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in objectives.values()])
        self._front: list[tuple[Row, dict[str, Any]]] = []  # with the knobs that have an effect
        self._losses = np.empty((0, len(objectives)))  # of the front
        self._values: dict[str, list[float]] = {name: [] for name in Knobs.names()}  # sorted
        self._first: dict[int, Row] = {}

    def add(self, row: Row) -> None:
        """Take in the next row. The front holds first runs that are ok, feasible and not suspect, without the reference."""
        self._note_values(row)
        if not row["run"]:
            self._first.setdefault(row["trial"], row)
        if not self._counts(row) or self._is_beaten(row):
            return
        loss = self._loss(row)
        stays = np.logical_not((loss <= self._losses).all(axis=1) & (loss < self._losses).any(axis=1)).tolist()
        self._front = [*itertools.compress(self._front, stays), (row, _live(row))]
        self._losses = np.vstack([self._losses[stays], loss])

    def line(self, row: Row) -> str:
        """The line of the row that comes next."""
        cells = [row["row_id"], row["trial"], row["run"], row["round"], row["origin"], *(row[n] for n in self._objectives)]
        return "\t".join([*map(_cell, cells), self._word(row), " ".join(self._sentence(row).split())])

    def _counts(self, row: Row) -> bool:
        return (
            row["status"] == "ok" and row["origin"] != "reference" and not row["run"] and not row["suspect"]
            and row["feasible"] is not False and all(_is_figure(row[name]) for name in self._objectives)
        )  # fmt: skip

    def _loss(self, row: Row) -> np.ndarray:
        return np.array([row[name] for name in self._objectives], float) * self._signs

    def _is_beaten(self, row: Row) -> bool:
        """Whether a point of the front is as good in all objectives and better in one."""
        loss = self._loss(row)
        return bool(((self._losses <= loss).all(1) & (self._losses < loss).any(1)).any())

    def _word(self, row: Row) -> str:
        if row["status"] != "ok":
            return str(row["status"])
        if row["feasible"] is False:
            return "infeasible"
        if row["suspect"]:
            return "suspect"
        if row["run"] or row["origin"] == "reference":
            return str(row["origin"])
        return "dominated" if self._is_beaten(row) else "kept"

    def _sentence(self, row: Row) -> str:
        if row["origin"] == "reference":
            return "everything resident: what the others are compared with"
        if row["run"]:
            first = self._first.get(row["trial"])
            if first is None:
                return "measured once more"
            return f"measured once more: {_came(row, first, self._objectives)} against run 0"
        if not self._front:
            return f"the first point: {_came(row, None, self._objectives)}"
        live = _live(row)
        self._note_values(row)
        near, there = min(self._front, key=lambda point: self._distance(live, point[1]))
        changes = [f"{n} {_value(there, n)} -> {_value(live, n)}" for n in _differing(live, there)]
        what = ", ".join(changes) or "the same setting"
        return f"vs trial {near['trial']}: {what}: {_came(row, near, self._objectives)}"

    def _note_values(self, row: Row) -> None:
        for name, values in self._values.items():
            value = row[name]
            if isinstance(value, int | float):
                at = bisect_left(values, value)
                if at == len(values) or values[at] != value:
                    values.insert(at, value)

    def _distance(self, live: Mapping[str, Any], other: Mapping[str, Any]) -> float:
        """A knob counts by the difference of its values' ranks among all tried, as a share; by 1 for words and unset."""
        total = 0.0
        for n in _differing(live, other):
            a, b, values = live.get(n), other.get(n), self._values[n]
            if isinstance(a, int | float) and isinstance(b, int | float):
                total += ((bisect_left(values, a) - bisect_left(values, b)) / (len(values) - 1)) ** 2
            else:
                total += 1.0
        return total


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The knobs with an effect in one of the two that are not the same in both; one without an effect is at its default."""
    left, right = DEFAULTS | dict(a), DEFAULTS | dict(b)
    return [n for n in Knobs.names() if left[n] != right[n]]


def _live(row: Row) -> dict[str, Any]:
    """The knobs of a row that have an effect."""
    return effective({n: row[n] for n in Knobs.names()})


def _value(live: Mapping[str, Any], name: str) -> str:
    return "idle" if name not in live else "unset" if live[name] is None else _number(live[name])


def _came(row: Row, other: Row | None, objectives: Mapping[str, Direction]) -> str:
    """What came of it: the reason of a failure, or each objective that moved (speeds in per cent, others by difference)."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['status_reason'] or 'no reason given'}"
    parts = []
    for name in objectives:
        new: Any = row[name]
        old: Any = other[name] if other is not None else None
        if not _is_figure(new):
            continue
        if not _is_figure(old):
            parts.append(f"{_number(new)} {SHORT[name]}")
        elif new != old:
            by_share = name.endswith("_s") and old > 0
            moved = f"{100 * (new - old) / old:+.3g} %" if by_share else f"{new - old:+.3g}"
            parts.append(f"{moved} {SHORT[name]}")
    tail = f"; {row['violated']}" if row["feasible"] is False and row["violated"] else ""
    tail += f"; suspect: {row['suspect']}" if row["suspect"] else ""
    return (", ".join(parts) or "no difference") + tail


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(value: Any) -> str:
    return "-" if value is None or value != value else " ".join(_number(value).split())


def _is_whole(line: str, objectives: Mapping[str, Direction]) -> bool:
    return line.endswith("\n") and line.count("\t") == len(HEAD) + len(objectives) + 1


def _when(row: Row) -> tuple[Any, ...]:
    started = row["started_at"]
    return (started is None, started.timestamp() if started is not None else 0.0, row["trial"], row["run"] or 0)
