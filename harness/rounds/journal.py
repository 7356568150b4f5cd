"""`journal.md`: one entry a round, for the morning reader: believed, tried, what the numbers said, kept or discarded.

An entry is appended in one piece and never changed. It ends with a mark; what a kill left without its mark is cut off
before the entry is written again, and a round that has its mark is not written twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from engine.system import atomic
from harness.analysis.counts import count
from harness.analysis.findings import Findings
from harness.analysis.hypervolume import contributions
from harness.analysis.importance import Importance
from harness.analysis.pareto import front
from harness.results.metrics import SHORT, Direction
from harness.show.tables import importance_rows, number, setting
from harness.space.changes import Change
from harness.space.space import Space

from .verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

NAME = "journal.md"


def space_path(round_number: int) -> str:
    """Where a round's space lies in the study's folder."""
    return f"rounds/{round_number:02d}/space.yaml"


def append(folder: Path, round_number: int, text: str) -> bool:
    """Add a round's entry (as `entry` gives it); False if the journal has it already."""
    path = folder / NAME
    old = path.read_bytes() if path.exists() else b""
    if _mark(round_number).encode() in old:
        return False
    marks = list(re.finditer(rb"<!-- end of round \d+ -->\n", old))
    new = ("\n" if marks else "# Journal\n\n") + text.rstrip("\n") + "\n\n" + _mark(round_number)
    atomic.write_bytes(path, old[: marks[-1].end() if marks else 0] + new.encode())
    return True


def entry(
    round_number: int,
    believed: Sequence[Change],
    space: Space,
    before: pd.DataFrame,
    after: pd.DataFrame,
    objectives: Mapping[str, Direction],
    reading: Findings,
    verdict: Verdict,
    proposed: Sequence[Change],
    command: str,
    refused: Sequence[str] = (),
    **rules: Any,
) -> str:
    """A round's entry as Markdown.

    believed: the changes that made this round's space; before, after: all rows at its start and at its end; proposed: the
    changes that the next round will try; command: repeats the round; refused: what an outside proposer was denied;
    rules: those of `front`.
    """
    rows = after[~after["row_id"].isin(before["row_id"])]
    changes = [f"- {_text(c)}" for c in believed] or ["- nothing yet: the space as it was given, to explore"]
    coming = [f"- {_text(c)}" for c in proposed] or ["- the space stays: nothing stands out from chance"]
    table = ["| knob | values |", "|---|---|", *(f"| `{n}` | {_values(v)} |" for n, v in space.as_config().items())]
    numbers = [*_fronts(before, after, objectives, space, rules), *_health(rows), *_origins(after, rules)]
    outcome = "Kept" if verdict.kept else "Discarded"
    parts = [
        f"## Round {round_number}: {outcome.lower()}",
        "\n".join(["### Believed", *changes]),
        f"### Tried\n{_tried(rows)}",
        "\n".join(table),
        f"The space is `{space_path(round_number)}`; to repeat the round:\n\n{indent(command, '    ')}",
        "\n".join(["### What the numbers said", *numbers]),
        _importance(reading.importance),
        *(["\n".join(["Refused from outside:", *(f"- {line}" for line in refused)])] if refused else []),
        f"### {outcome}\n{verdict.evidence[:1].upper()}{verdict.evidence[1:]}. {_outcome(verdict)}",
        "\n".join(["### Next", *coming]),
    ]
    return "\n\n".join(parts) + "\n"


def _mark(round_number: int) -> str:
    return f"<!-- end of round {round_number} -->\n"


def _text(change: Change) -> str:
    return f"{change}" + (f": {change.evidence}" if change.evidence else "")


def _values(value: Any) -> str:
    """An entry of the space, or a held value, in a cell."""
    if not isinstance(value, Mapping):
        return f"held at {'unset' if value is None else value}"
    if "values" in value:
        return ", ".join("unset" if v is None else str(v) for v in value["values"])
    return f"{value['low']:g} .. {value['high']:g}{', log' if value.get('log') else ''}"


def _tried(rows: pd.DataFrame) -> str:
    """Counts by origin and status, and the time they took."""
    hours = rows["wall_s"].astype(float).sum() / 3600
    suspect, found = int(rows["suspect"].notna().sum()), count(rows)
    return (
        f"{found}. {found.runs} runs in {hours:.2f} h, {suspect} suspect. Chosen by: "
        f"{_counts(rows.loc[rows['run'].fillna(0) == 0, 'origin'])}."
    )


def _counts(values: pd.Series) -> str:
    return ", ".join(f"{word} {count}" for word, count in Counter(values).most_common()) or "none"


def _fronts(
    before: pd.DataFrame, after: pd.DataFrame, objectives: Mapping[str, Direction], space: Space, rules: Mapping[str, Any]
) -> list[str]:
    """The front at the start and at the end, and the setting of its best point for the first objective."""
    lines = []
    for word, df in (("before", before), ("after", after)):
        best = front(df, **rules)
        if not len(best):
            lines.append(f"- front {word}: empty")
            continue
        ends = {o: float(best[o].max() if d == "maximize" else best[o].min()) for o, d in objectives.items()}
        values = ", ".join(f"{number(v, 4)} {SHORT[o]}" for o, v in ends.items())
        lines.append(f"- front {word}: {len(best)} points, {int(best['confirmed'].sum())} confirmed; best of each: {values}")
        if word == "after":
            first, row = next(iter(objectives)), best.iloc[0]
            what = setting(row.to_dict(), [e.name for e in space.entries]) or "no knob of the space has an effect"
            lines.append(f"- best {first}: trial {row['trial']}, {number(float(row[first]), 4)} {SHORT[first]}: `{what}`")
    return lines


def _health(rows: pd.DataFrame) -> list[str]:
    drift = rows.loc[(rows["origin"] == "sentinel") & (rows["status"] == "ok"), "drift"].dropna().astype(float)
    if not len(drift):
        return ["- sentinel: not measured in this round"]
    low, high = drift.min() - 1, drift.max() - 1
    return [f"- sentinel: {len(drift)} runs, {low:+.1%} to {high:+.1%} of the earlier ones' median speed"]


def _origins(after: pd.DataFrame, rules: Mapping[str, Any]) -> list[str]:
    """How many settings of each origin are on the front now."""
    shares = [f"{o} {int(c['on_front'])} of {int(c['trials'])}" for o, c in contributions(after, **rules).iterrows()]
    return [f"- settings now on the front: {', '.join(shares)}"] if shares else []


def _importance(found: Importance) -> str:
    """The table of shares, the largest first."""
    head, rows = importance_rows(found)
    if not rows:
        return head[0]
    names = found.objectives
    lines = ["| knob | " + " | ".join(names) + " |", f"|---|{'---|' * len(names)}"]
    return "\n".join([*head, "", *lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _outcome(verdict: Verdict) -> str:
    if verdict.kept:
        return "The next round starts from this space."
    return "Its rows stay; the next round starts from the last kept space."
