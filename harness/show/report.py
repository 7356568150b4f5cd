"""Report: recommended settings with their commands, the front as a table, the plots, and what the runs contributed.

Everything is computed once, as a `Summary` that terminal, plots and page share.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from .commands import confirm_more, use
from .lines import contribution, health, reasons, saved, undecided, violations
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
    for line in violations(df):
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
        for line in (*undecided(summary.standings), *contribution(found), *saved(df), *health(df)):
            say(line)
        say()
        console.print(importance_table(summary.importance))
        say()
        say(f"plot  {_short(plot_front(found, folder / 'front.png'))}")
    elif len(df):
        say(f"no feasible trial yet; last error: {summary.last_error}")
    if len(df) and (drawn := plot_session(df, folder / "session.png")):
        say(f"runs  {_short(drawn)}")
    say(f"page  {_short(write_page(summary))}")
    say(f"rows  {_short(folder / 'trials.parquet')}")


def to_use(summary: Summary) -> list[str]:
    """The commands that use the recommended settings."""
    lines = []
    for trial, names in summary.used.items():
        command = use(summary.folder, summary.standings.loc[trial])
        lines += ["", f"to use {', '.join(names)} (trial {trial}):", "", f"    {command}"]
    return lines


def _short(path: Path) -> str:
    """The path relative to the current folder, if it is inside."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
