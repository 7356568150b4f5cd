"""The end of a study: its front as a table, the knee marked, the plot and where everything lies.

python -m harness.report results/demo
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from engine import HeadraceError

from .front import front
from .plot import plot_front
from .rows import read_rows, read_trials
from .tables import frame, front_table


def report(folder: Path, rows: Sequence[Mapping[str, Any]], wanted: int | None = None) -> None:
    """Print the front of a study's rows, draw its plot and say where rows and plot are."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    say = lambda text="": console.print(text, markup=False, highlight=False, soft_wrap=True)  # noqa: E731
    df = frame(rows)
    statuses = df["status"].value_counts()
    say()
    say(f"{len(df)} trials: " + (", ".join(f"{n} {status}" for status, n in statuses.items()) or "none yet"))
    best = front(df) if len(df) else df
    if len(best):
        say(f"front of {len(best)}, fastest first:")
        say()
        console.print(front_table(df, console.width))
        say()
        say(f"plot  {_short(plot_front(df, folder / 'front.png'))}")
    elif len(df):
        reason = df["status_reason"].dropna().iloc[-1] if df["status_reason"].notna().any() else "no streamed trial yet"
        say(f"no trial on the front yet; the last said: {reason}")
    say(f"rows  {_short(folder / 'trials')}")
    if wanted is not None and len(df) >= wanted:
        say(f"done; for more: budget.trials={wanted * 2}")


def _short(path: Path) -> str:
    """The path as seen from here, if that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def main(arguments: list[str]) -> int:
    """Report the study folders given; returns the exit status."""
    if not arguments or arguments[0].startswith("-"):
        print(__doc__)
        return 0
    try:
        for argument in arguments:
            folder = Path(argument).expanduser().absolute()
            read_trials(folder)  # with its checks: damaged files, mixed judges
            report(folder, read_rows(folder))
    except HeadraceError as e:
        print(e, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
