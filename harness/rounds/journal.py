"""Journal: `journal.md`, one entry per round with its hypothesis, trials, results and verdict.

An entry is written atomically and never changed. It ends with a mark, so a round that is concluded again after a kill does
not get a second entry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import indent
from typing import TYPE_CHECKING, Any

from harness.analysis.counts import count
from harness.analysis.findings import Findings
from harness.analysis.hypervolume import contributions
from harness.analysis.importance import Importance
from harness.analysis.pareto import front
from harness.results.files import write_text
from harness.results.metrics import SHORT, Direction
from harness.show.tables import importance_rows
from harness.show.text import number, setting
from harness.space.changes import Change
from harness.space.space import Space

from .round import space_path
from .verdict import Verdict

if TYPE_CHECKING:
    import pandas as pd

NAME = "journal.md"


def append(folder: Path, round_number: int, text: str) -> bool:
    """Add a round's entry (the text of `entry`); False if the journal has one."""
    path = folder / NAME
    old = path.read_text(encoding="utf-8") if path.exists() else "# Journal\n"
    if _mark(round_number) in old:
        return False
    write_text(path, "\n".join([old, text, _mark(round_number)]))
    return True


def entry(
    round_number: int,
    hypothesis: Sequence[Change],
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

    hypothesis: the changes that led to this round's space. before, after: all rows at its start and at its end. proposed:
    the hypothesis of the next round. command: the command that repeats the round. refused: a line for each rejected part of
    an external proposer's answers. rules: keyword arguments of `front`.
    """
    rows = after[~after["row_id"].isin(before["row_id"])]
    changes = [f"- {_text(c)}" for c in hypothesis] or ["- none: the study's own space"]
    coming = [f"- {_text(c)}" for c in proposed] or ["- the same space: no finding is beyond chance"]
    table = ["| knob | values |", "|---|---|", *(f"| `{n}` | {_values(v)} |" for n, v in space.as_config().items())]
    numbers = [*_fronts(before, after, objectives, space, rules), *_health(rows), *_origins(after, rules)]
    outcome = "kept" if verdict.kept else "discarded"
    parts = [
        f"## Round {round_number}: {outcome}",
        "\n".join(["### Hypothesis", *changes]),
        f"### Trials\n{_trials(rows)}",
        "\n".join(table),
        f"The space is `{space_path(round_number)}`; to repeat the round:\n\n{indent(command, '    ')}",
        "\n".join(["### Results", *numbers]),
        _importance(reading.importance),
        *(["\n".join(["Rejected from the external proposer:", *(f"- {line}" for line in refused)])] if refused else []),
        f"### Verdict: {outcome}\n{verdict.evidence[:1].upper()}{verdict.evidence[1:]}. {_outcome(verdict)}",
        "\n".join(["### Next hypothesis", *coming]),
    ]
    return "\n\n".join(parts) + "\n"


def _mark(round_number: int) -> str:
    return f"<!-- end of round {round_number} -->\n"


def _text(change: Change) -> str:
    return f"{change}" + (f": {change.evidence}" if change.evidence else "")


def _values(value: Any) -> str:
    """An entry of the space, or a fixed value, as a table cell."""
    if not isinstance(value, Mapping):
        return f"fixed at {'unset' if value is None else value}"
    if "values" in value:
        return ", ".join("unset" if v is None else str(v) for v in value["values"])
    return f"{value['low']:g} .. {value['high']:g}{', log' if value.get('log') else ''}"


def _trials(rows: pd.DataFrame) -> str:
    """Counts by status and origin, and the duration."""
    hours = rows["wall_s"].astype(float).sum() / 3600
    suspect, found = int(rows["suspect"].notna().sum()), count(rows)
    return (
        f"{found}. {found.runs} runs in {hours:.2f} h, {suspect} suspect. New settings by origin: "
        f"{_counts(rows.loc[rows['run'].fillna(0) == 0, 'origin'])}."
    )


def _counts(values: pd.Series) -> str:
    return ", ".join(f"{word} {count}" for word, count in Counter(values).most_common()) or "none"


def _fronts(
    before: pd.DataFrame, after: pd.DataFrame, objectives: Mapping[str, Direction], space: Space, rules: Mapping[str, Any]
) -> list[str]:
    """The front at the start and at the end, and the best setting in the first objective."""
    lines = []
    for word, df in (("before", before), ("after", after)):
        best = front(df, **rules)
        if not len(best):
            lines.append(f"- front {word}: empty")
            continue
        ends = {o: float(best[o].max() if d == "maximize" else best[o].min()) for o, d in objectives.items()}
        values = ", ".join(f"{number(v, 4)} {SHORT[o]}" for o, v in ends.items())
        confirmed = int(best["confirmed"].sum())
        lines.append(f"- front {word}: {len(best)} points, {confirmed} confirmed; best of each objective: {values}")
        if word == "after":
            first, row = next(iter(objectives)), best.iloc[0]
            knobs = setting(row.to_dict(), [e.name for e in space.entries]) or "no knob of the space has an effect"
            lines.append(f"- best {first}: trial {row['trial']}, {number(float(row[first]), 4)} {SHORT[first]}: `{knobs}`")
    return lines


def _health(rows: pd.DataFrame) -> list[str]:
    drift = rows.loc[(rows["origin"] == "sentinel") & (rows["status"] == "ok"), "drift"].dropna().astype(float)
    if not len(drift):
        return ["- drift: the sentinel did not run in this round"]
    low, high = drift.min() - 1, drift.max() - 1
    change = f"{low:+.1%}" if len(drift) == 1 else f"{low:+.1%} to {high:+.1%}"
    runs = "1 sentinel run" if len(drift) == 1 else f"{len(drift)} sentinel runs"
    return [f"- drift: {change} against the median speed of the earlier runs, in {runs}"]


def _origins(after: pd.DataFrame, rules: Mapping[str, Any]) -> list[str]:
    """The number of settings on the front by origin."""
    shares = [f"{o} {int(c['on_front'])} of {int(c['trials'])}" for o, c in contributions(after, **rules).iterrows()]
    return [f"- settings on the front by origin: {', '.join(shares)}"] if shares else []


def _importance(found: Importance) -> str:
    """The table of importance, the largest share first."""
    head, rows = importance_rows(found)
    if not rows:
        return head
    names = found.objectives
    lines = ["| knob | " + " | ".join(names) + " |", f"|---|{'---|' * len(names)}"]
    return "\n".join([head, "", *lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _outcome(verdict: Verdict) -> str:
    if verdict.kept:
        return "The next round starts from this space."
    return "The rows stay; the next round starts from the last kept space."
