"""Report: recommended settings with their commands, the front as a table, the plots, and what the runs contributed.

Estimates, posterior and standings are computed once, as an `Analysis` that tables and plots share.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from engine.setting.study_setting import BEST
from harness import ResultsError
from harness.analysis.counts import count
from harness.analysis.estimates import noise, suspects
from harness.analysis.hypervolume import contributions
from harness.analysis.importance import importance
from harness.analysis.pareto import Analysis, Rows
from harness.best.commands import cannot_run, commands_of, confirm_more
from harness.best.write import write_best
from harness.decisions.recommend import Choice, compared, named, recommended, rules_of, wishes_of
from harness.propose.report_study import publish
from harness.results.metrics import SHORT
from harness.results.rows import frame
from harness.show.plots.front_plot import plot_front
from harness.show.plots.session_plot import plot_session

from .tables import front_table, importance_table, recommended_table

SAVED_BY = {
    "infeasible": "pruned: out of memory by arithmetic",
    "dominated": "pruned: speed bound below the front",
    "stopped": "stopped early",
}


def report(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the report of a study's rows by the rules in its manifest, draw its plots, and print the paths of both."""
    rules = rules_of(folder)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    say = lambda text="": console.print(text, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    df = frame(rows)
    say()
    say(str(count(df)))
    for line in violations(df):
        say(line)
    found = Analysis(df, **rules)
    every = found.standings if len(df) else df
    best = every[every["standing"] == "front"] if len(df) else df
    choices = recommended(found, **wishes_of(folder)) if len(best) else []
    if len(best):
        say("recommended settings:")
        say()
        console.print(recommended_table(found, choices))
        say()
        for line in (*reasons(found, choices), *to_use(folder, found, choices)):
            say(line)
        if not all(c.confirmed for c in choices if c.trial is not None) and (command := confirm_more(folder)):
            say()
            say("to confirm the settings that are not confirmed:")
            say()
            say(textwrap.indent(command, "    "))
        say()
        say(f"front of {len(best)}, {int(best['confirmed'].sum())} confirmed, best first:")
        say()
        console.print(front_table(found, console.width))
        say()
        for line in (*undecided(every), *contribution(found), *saved(df), *health(df)):
            say(line)
        say()
        console.print(importance_table(importance(found)))
        say()
        say(f"plot  {_short(plot_front(found, folder / 'front.png'))}")
    elif len(df):
        reason = df["status_reason"].dropna().iloc[-1] if df["status_reason"].notna().any() else "no streamed trial has run"
        say(f"no feasible trial yet; last error: {reason}")
    if len(df):
        chosen = {c.name: c.trial for c in choices if c.trial is not None}
        say(f"study {publish(folder, rows, found, chosen)}")
    if len(df) and (drawn := plot_session(df, folder / "session.png")):
        say(f"runs  {_short(drawn)}")
    for line in _write_best(folder, found, choices):
        say(line)
    say(f"rows  {_short(folder / 'trials.parquet')}")


def reasons(found: Analysis, choices: Sequence[Choice]) -> list[str]:
    """For each recommended setting: its rule, its trial, the comparison with the default, and its confirmation."""
    rows, lines = named(found, choices), []
    default = next(point for name, point, _ in rows if name == "default")
    width = max(len(c.name) for c in choices)
    for name, point, choice in rows:
        if choice is None:
            continue
        lines.append(f"{name:{width}}  {choice.rule}")
        if point is None:
            lines.append(f"{'':{width}}  not met: {choice.reason}")
            continue
        than = "the default was not measured" if default is None else compared(found, point, default)
        sure = confirmation(choice, int(point["fresh_runs"]), found.runs)
        lines.append(f"{'':{width}}  met by trial {choice.trial}: {than}; {sure}")
    return lines


def confirmation(choice: Choice, fresh: int, runs: int) -> str:
    """Whether a recommended setting is confirmed, and if not, what is missing."""
    if choice.confirmed:
        return "confirmed"
    if fresh < runs:
        return f"not confirmed: {fresh} of {runs} fresh runs"
    rivals = " or ".join(f"trial {t}" for t in choice.rivals[:2])
    return f"not confirmed: with probability {choice.doubt:.0%} the setting is truly {rivals}"


def to_use(folder: Path, analysis: Analysis, choices: Sequence[Choice]) -> list[str]:
    """The commands that use the recommended settings: the first of each trial, and the names of the others."""
    found: dict[int, list[Choice]] = {}
    for choice in choices:
        if choice.trial is not None:
            found.setdefault(choice.trial, []).append(choice)
    points = {c.trial: point for _, point, c in named(analysis, choices) if c is not None and point is not None}
    lines: list[str] = []
    verbs: list[str] = []
    for trial, same in found.items():
        commands = commands_of(folder, same[0], points[trial])
        verbs = list(commands) or verbs
        command = next(iter(commands.values()), f"({cannot_run(points[trial])})")
        lines += ["", f"to use {', '.join(c.name for c in same)} (trial {trial}):", "", f"    {command}"]
    if len(verbs) > 1:
        lines += ["", f"{', '.join(verbs[1:-1])} and {verbs[-1]} take the same options as {verbs[0]}"]
    return lines


def violations(df: pd.DataFrame) -> list[str]:
    """The number of trials that violate a constraint, and the constraint violated most often."""
    first = df[df["run"].fillna(0) == 0]
    if not (n := int((first["feasible"] == False).sum())):  # noqa: E712 (null is not False)
        return []
    violated = first["violated"].dropna().mode()
    return [f"{n} violate a constraint" + (f", most often {violated.iloc[0]}" if len(violated) else "")]


def undecided(every: pd.DataFrame) -> list[str]:
    """The trials of `standings` that are undecided between the front and near rivals."""
    left = every.index[every["standing"] == "undecided"]
    if not len(left):
        return []
    names = ", ".join(str(t) for t in sorted(left)[:12]) + (", ..." if len(left) > 12 else "")
    return [f"undecided, not on the front because of near rivals: {names}; more confirmation runs decide (confirm.share)"]


def contribution(rows: Rows) -> list[str]:
    """The contribution of each origin: its trials on the front, and the hypervolume that would be lost without them."""
    found = contributions(rows)
    if len(found) < 2 or found["lost"].isna().any():
        return []
    return [
        "contribution by origin:",
        *(
            f"  {origin:9} {int(c['on_front']):3} of {int(c['trials']):4} on the front ({c['on_front'] / c['trials']:5.1%}),"
            f" {c['lost']:6.1%} of the hypervolume ({c['lost'] / c['trials']:.2%} a trial)"
            for origin, c in found.iterrows()
        ),
    ]


def saved(df: pd.DataFrame) -> list[str]:
    """The time saved, by reason."""
    spared = df["saved_s"].fillna(0)
    if not spared.sum() > 0:
        return []
    sums = spared.groupby(df["status"].map(SAVED_BY).fillna("quality reused")).sum()
    parts = ", ".join(f"{_time(s)} {what}" for what, s in sums.items() if s > 0)
    return [f"saved {_time(spared.sum())} of {_time(spared.sum() + df['wall_s'].sum())}: {parts}"]


def health(df: pd.DataFrame) -> list[str]:
    """The noise between runs, the drift of the sentinel, and the trials that are still suspect."""
    lines, found = [], noise(df)
    known = [f"{SHORT[m]} {row['sd']:.1%}" for m, row in found.iterrows() if row["runs"] and row["sd"] > 0]
    if known:
        lines.append(f"noise from run to run: {', '.join(known)} ({int(found['runs'].max())} runs)")
    drift = df["drift"].dropna()
    if len(drift):
        n = int(df["drift_since"].notna().sum())
        lines.append(
            f"sentinel speed {drift.min():.0%} to {drift.max():.0%} of the earlier median in {len(drift)} runs"
            + (f", {n} beyond the limit" if n else "")
        )
    if waiting := suspects(df):
        lines.append(f"suspect, to be measured again: trial {', '.join(map(str, waiting))}")
    return lines


def _write_best(folder: Path, found: Analysis, choices: Sequence[Choice]) -> list[str]:
    """Write the setting files; returns lines on where they are, or why not."""
    try:
        left = write_best(folder, found, choices)
    except ResultsError as e:
        return [f"best  {e}"]
    there = (folder / BEST).is_dir()
    return [*([f"best  {_short(folder / BEST)}"] if there else []), *(f"      {line}" for line in left)]


def _time(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _short(path: Path) -> str:
    """The path relative to the current folder, if it is inside."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
