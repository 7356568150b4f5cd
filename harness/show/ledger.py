"""`ledger.tsv`: one line a run, with where its trial stands now and one sentence on what differs from the default setting.

The Parquet rows are the truth. The ledger is made from them alone and replaced as a whole after each row, so that it always
agrees with them and with the front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import Knobs
from engine.knobs import DEFAULTS
from harness.analysis.pareto import standings
from harness.decisions.recommend import default_trial
from harness.results.metrics import SHORT, Direction
from harness.space.space import effective
from harness.study.manifest import write_text

from .tables import frame

Row = Mapping[str, Any]
NAME = "ledger.tsv"
HEAD = ("row_id", "trial", "run", "round", "origin")


def header(objectives: Mapping[str, Direction]) -> str:
    """The first line of the file."""
    return "\t".join([*HEAD, *objectives, "status", "standing", "sentence"])


def write_ledger(folder: Path, rows: Sequence[Row], objectives: Mapping[str, Direction], **rules: Any) -> None:
    """Write the ledger of these rows, in the order in which they were measured. `rules` are those of `front`."""
    write_text(folder / NAME, "\n".join([header(objectives), *lines(rows, objectives, **rules)]) + "\n")


def lines(rows: Sequence[Row], objectives: Mapping[str, Direction], **rules: Any) -> list[str]:
    """A line a row: identity, objectives (`-` without a figure), status, standing of its trial, and the sentence.

    The status is the row's; an ok one that violates a constraint is infeasible, one that is not to be trusted suspect. The
    standing is front, undecided, dominated, or `-` for the reference and trials without a trusted, feasible run.
    """
    df = frame(rows)
    standing = standings(df, **rules)["standing"].to_dict() if len(df) else {}
    trial, first = default_trial(df), {r["trial"]: r for r in rows if not r["run"]}
    default = first.get(trial) if trial is not None else None
    out = []
    for row in sorted(rows, key=_when):
        cells = [row["row_id"], row["trial"], row["run"], row["round"], row["origin"], *(row[n] for n in objectives)]
        sentence = _sentence(row, first.get(row["trial"]), default, objectives)
        words = _status(row), standing.get(row["trial"], "-"), " ".join(sentence.split())
        out.append("\t".join([*map(_cell, cells), *words]))
    return out


def _status(row: Row) -> str:
    if row["status"] == "ok" and row["feasible"] is False:
        return "infeasible"
    return "suspect" if row["status"] == "ok" and row["suspect"] else str(row["status"])


def _sentence(row: Row, first: Row | None, default: Row | None, objectives: Mapping[str, Direction]) -> str:
    if row["origin"] == "reference":
        return f"everything resident: {_outcome(row, None, objectives)}"
    if row["run"]:
        return f"measured once more: {_outcome(row, first, objectives)}" + (" against run 0" if first else "")
    if default is None or default["trial"] == row["trial"]:
        return f"{'the default' if default else 'no default to compare with'}: {_outcome(row, None, objectives)}"
    live, there = _live(row), _live(default)
    changes = [f"{n} {_value(there, n)} -> {_value(live, n)}" for n in _differing(live, there)]
    return f"vs the default: {', '.join(changes) or 'the same setting'}: {_outcome(row, default, objectives)}"


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """The knobs with an effect in one of the two that are not the same in both; one without an effect is at its default."""
    left, right = DEFAULTS | dict(a), DEFAULTS | dict(b)
    return [n for n in Knobs.names() if left[n] != right[n]]


def _live(row: Row) -> dict[str, Any]:
    """The knobs of a row that have an effect."""
    return effective({n: row[n] for n in Knobs.names()})


def _value(live: Mapping[str, Any], name: str) -> str:
    return "idle" if name not in live else "unset" if live[name] is None else _number(live[name])


def _outcome(row: Row, other: Row | None, objectives: Mapping[str, Direction]) -> str:
    """The reason of a failure, or each objective that changed (speeds in per cent, others by difference)."""
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


def _when(row: Row) -> tuple[Any, ...]:
    started = row["started_at"]
    return (started is None, started.timestamp() if started is not None else 0.0, row["trial"], row["run"] or 0)
