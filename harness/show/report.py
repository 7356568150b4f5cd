"""Report: recommended settings with their commands, the front as a table, the plots, and what the runs contributed.

Everything is computed once, as a `Summary` that terminal, plots and page share.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from engine.setting.study_setting import BEST
from harness import ResultsError
from harness.best.commands import confirm_more
from harness.best.write import write_best
from harness.propose.report_study import publish

from .costs import costs
from .hours import hours_table
from .lines import contribution, forecast, health, reasons, rehearsal, saved, undecided, violations
from .page.facts import commands
from .page.html import write_page
from .page.summary import Summary
from .plots.front_plot import plot_front
from .plots.session_plot import plot_session
from .tables import front_table, importance_table, recommended_table


def report(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the report of a study's rows by the rules in its manifest, draw plots and page, and print their paths."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    say = lambda text="": console.print(text, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    summary = Summary(folder, rows)
    df, found, best, choices = summary.df, summary.found, summary.front, summary.choices
    say()
    say(str(summary.counts))
    for line in (*rehearsal(df), *violations(df)):
        say(line)
    if len(best):
        say("recommended settings:")
        say()
        console.print(recommended_table(found, choices))
        say()
        for line in (*reasons(found, choices), *to_use(summary)):
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
        for line in (
            *undecided(summary.standings),
            *contribution(found),
            *saved(df),
            *health(df),
            *forecast(df),
            *costs(df),
        ):
            say(line)
        say()
        console.print(importance_table(summary.importance))
        say()
        say(f"plot  {_short(plot_front(found, folder / 'front.png'))}")
    elif len(df):
        say(f"no feasible trial yet; last error: {summary.last_error}")
    if summary.hours.runs or summary.hours.unknown_runs:
        console.print(hours_table(summary.hours))
        say()
    if len(df):
        chosen = {c.name: c.trial for c in choices if c.trial is not None}
        say(f"study {publish(folder, rows, found, chosen)}")
    if len(df) and (drawn := plot_session(df, folder / "session.png")):
        say(f"runs  {_short(drawn)}")
    say(f"page  {_short(write_page(summary))}")
    for line in _write_best(summary):
        say(line)
    say(f"rows  {_short(folder / 'trials.parquet')}")


def to_use(summary: Summary) -> list[str]:
    """The commands that use the recommended settings: the first of each trial, and the names of the others."""
    lines: list[str] = []
    verbs: list[str] = []
    for what, found in commands(summary):
        verbs = list(found) if len(found) > 1 else verbs
        lines += ["", f"to use {what}:", "", f"    {next(iter(found.values()))}"]
    if verbs:
        lines += ["", f"{', '.join(verbs[1:-1])} and {verbs[-1]} take the same options as {verbs[0]}"]
    return lines


def _write_best(summary: Summary) -> list[str]:
    """Write the setting files; returns lines on where they are, or why not."""
    try:
        left = write_best(summary.folder, summary.found, summary.choices)
    except ResultsError as e:
        return [f"best  {e}"]
    there = (summary.folder / BEST).is_dir()
    return [*([f"best  {_short(summary.folder / BEST)}"] if there else []), *(f"      {line}" for line in left)]


def _short(path: Path) -> str:
    """The path relative to the current folder, if it is inside."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
