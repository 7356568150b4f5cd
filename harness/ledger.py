"""`ledger.tsv`: one line a run, with one sentence on what differed from the front as it was and what came of it.

The Parquet rows are the truth. The ledger is made from them alone, so that a line cut short by a kill is mended by writing
it again: `mend` before the search goes on, `append` after each row. A line is written, flushed and synced in one piece.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine import Knobs

from .columns import Direction
from .rows import sync_folder
from .space import effective

Row = Mapping[str, Any]
NAME = "ledger.tsv"
DEFAULTS = Knobs().as_dict()
HEAD = ("row_id", "trial", "run", "round", "origin")
UNITS = {
    "decode_tok_s": "tok/s", "prefill_tok_s": "tok/s prefill", "ttft_ms": "ms to the first token", "peak_memory_gb": "GB",
    "perplexity": "perplexity", "kl": "nats KL", "bytes_per_token": "bytes read a token",
}  # fmt: skip


def header(objectives: Mapping[str, Direction]) -> str:
    """The first line of the file."""
    return "\t".join([*HEAD, *objectives, "status", "sentence"])


def ledger_line(row: Row, rows_before: Sequence[Row], objectives: Mapping[str, Direction]) -> str:
    """A row's line, without its end: identity, objectives (`-` without a figure), what became of it, and the sentence.

    The word is the row's status, of an ok row: infeasible (a constraint is broken), suspect, its origin if it measured a
    trial once more, else kept (on the front of the rows before and itself) or dominated.
    """
    return _line(row, front_before(rows_before, objectives), rows_before, objectives)


def _line(row: Row, front: Sequence[Row], rows_before: Sequence[Row], objectives: Mapping[str, Direction]) -> str:
    cells = [row["row_id"], row["trial"], row["run"], row["round"], row["origin"], *(row[name] for name in objectives)]
    word = _word(row, front, objectives)
    sentence = _sentence(row, front, rows_before, objectives)
    return "\t".join([*map(_cell, cells), word, " ".join(sentence.split())])


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
    lines, front = [header(objectives)], front_before([], objectives)
    for i, row in enumerate(ordered):
        kept = whole.get(str(row["row_id"]))
        lines.append(kept.rstrip("\n") if kept else _line(row, front, ordered[:i], objectives))
        front = _joined(front, row, objectives)
    new = "\n".join(lines) + "\n"
    if new != old:
        tmp = path.with_name(f".{NAME}.tmp")
        with open(tmp, "w", encoding="utf-8") as f:
            f.write(new)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp, path)
        sync_folder(folder)


def front_before(rows: Sequence[Row], objectives: Mapping[str, Direction]) -> list[Row]:
    """The rows on the front of `rows`: first runs that are ok, feasible and not suspect, without the reference."""
    front: list[Row] = []
    for row in rows:
        front = _joined(front, row, objectives)
    return front


def _joined(front: list[Row], row: Row, objectives: Mapping[str, Direction]) -> list[Row]:
    """The front after one more row."""
    if not _counts(row, objectives) or any(_beats(f, row, objectives) for f in front):
        return front
    return [*(f for f in front if not _beats(row, f, objectives)), row]


def _counts(row: Row, objectives: Mapping[str, Direction]) -> bool:
    return (
        row["status"] == "ok" and row["origin"] != "reference" and not row["run"] and not row["suspect"]
        and row["feasible"] is not False and all(_is_figure(row[name]) for name in objectives)
    )  # fmt: skip


def _beats(a: Row, b: Row, objectives: Mapping[str, Direction]) -> bool:
    """Whether a is as good as b in all objectives and better in one."""
    signs = [-1 if direction == "maximize" else 1 for direction in objectives.values()]
    pairs = [(s * a[name], s * b[name]) for s, name in zip(signs, objectives, strict=True)]
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def _word(row: Row, front: Sequence[Row], objectives: Mapping[str, Direction]) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    if row["feasible"] is False:
        return "infeasible"
    if row["suspect"]:
        return "suspect"
    if row["run"] or row["origin"] == "reference":
        return str(row["origin"])
    return "dominated" if any(_beats(f, row, objectives) for f in front) else "kept"


def _sentence(row: Row, front: Sequence[Row], before: Sequence[Row], objectives: Mapping[str, Direction]) -> str:
    if row["origin"] == "reference":
        return "everything resident: what the others are compared with"
    if row["run"]:
        first = next((r for r in before if r["trial"] == row["trial"] and not r["run"]), None)
        if first is None:
            return "measured once more"
        return f"measured once more: {_came(row, first, objectives)} against run 0"
    if not front:
        return f"the first point: {_came(row, None, objectives)}"
    near, changed = _nearest(row, front, before)
    what = ", ".join(f"{n} {_value(near, n)} -> {_value(row, n)}" for n in changed) or "the same setting"
    return f"vs trial {near['trial']}: {what}: {_came(row, near, objectives)}"


def _nearest(row: Row, front: Sequence[Row], before: Sequence[Row]) -> tuple[Row, list[str]]:
    """The row of the front at the smallest distance, and the knobs in which it differs.

    A knob counts by the difference of its values' ranks among all values tried, as a share; by 1 for words and unset.
    """
    names = Knobs.names()
    tried = {n: sorted({v for r in (*before, row) if isinstance(v := r[n], int | float)}) for n in names}

    def distance(other: Row) -> float:
        total = 0.0
        for n in _differing(row, other):
            a, b = row[n], other[n]
            if n in _live(row) and n in _live(other) and isinstance(a, int | float) and isinstance(b, int | float):
                total += (abs(tried[n].index(a) - tried[n].index(b)) / (len(tried[n]) - 1)) ** 2
            else:
                total += 1.0
        return total

    near = min(front, key=distance)
    return near, _differing(row, near)


def _differing(a: Row, b: Row) -> list[str]:
    """The knobs with an effect in one of the two that are not the same in both; one without an effect is at its default."""
    left, right = DEFAULTS | _live(a), DEFAULTS | _live(b)
    return [n for n in Knobs.names() if left[n] != right[n]]


def _live(row: Row) -> dict[str, Any]:
    return effective({n: row[n] for n in Knobs.names()})


def _value(row: Row, name: str) -> str:
    live = _live(row)
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
            parts.append(f"{_number(new)} {UNITS[name]}")
        elif new != old:
            by_share = name.endswith("_s") and old > 0
            moved = f"{100 * (new - old) / old:+.3g} %" if by_share else f"{new - old:+.3g}"
            parts.append(f"{moved} {UNITS[name]}")
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
