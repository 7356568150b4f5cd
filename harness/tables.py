"""Rows as text: the front as a table, one trial as a line. Widths follow the terminal; nothing is said by colour alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import Knobs

from .columns import NAMES
from .front import front, knee
from .space import effective

FIGURES = {"decode_tok_s": "tok/s", "peak_memory_gb": "GB", "perplexity": "perplexity"}
KNEE = "◆ knee"
FIGURES_WIDTH = 52  # of the columns before the knobs
RESIDENT = "everything resident"


def frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows as `read_trials` gives them."""
    return pd.DataFrame(list(rows), columns=list(NAMES))


def number(value: Any, digits: int = 3) -> str:
    """A figure or a knob's value, as short as it can be said."""
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return str(value)


def setting(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """`name=value` for the given knobs, without those that had no effect."""
    live = effective({n: (None if row[n] != row[n] else row[n]) for n in Knobs.names()})
    return " ".join(f"{n}={'unset' if live[n] is None else number(live[n], 4)}" for n in names if n in live)


def varying(df: pd.DataFrame) -> list[str]:
    """The knobs that are not the same in all rows."""
    return [n for n in Knobs.names() if df[n].nunique(dropna=False) > 1]


def front_table(df: pd.DataFrame, width: int, *, most: int | None = None) -> RenderableType:
    """The front, fastest first, with knee and reference marked: a column a knob where they fit, else settings below.

    A live view asks for `most` rows, and then gets no settings below.
    """
    best, marked = front(df), knee(df)
    shown = best if most is None else best.head(most)
    reference = df[(df["origin"] == "reference") & (df["status"] == "ok")]
    names = varying(best)
    columns = names if width >= FIGURES_WIDTH + sum(len(n) + 1 for n in names) else []
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("trial", *FIGURES.values(), "hit", "", *columns):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for label, row in pd.concat([shown, reference]).iterrows():
        is_reference = row["origin"] == "reference"
        tag = "reference" if is_reference else KNEE if label == marked else ""
        figures = [number(row[n], 4) for n in FIGURES] + [number(row["hit_rate"], 2)]
        style = "bold" if tag == KNEE else "dim" if is_reference else ""
        table.add_row(str(row["trial"]), *figures, tag, *[_cell(row, n) for n in columns], style=style)
    if len(shown) < len(best):
        return Group(table, Text(f"… and {len(best) - len(shown)} more", style="dim"))
    return table if columns or most is not None else Group(table, Text(), _settings(shown, names))


def _settings(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", min_width=5)
    grid.add_column(overflow="fold")
    for _, row in rows.iterrows():
        grid.add_row(str(row["trial"]), setting(row, names))
    return grid


def trial_line(row: Mapping[str, Any], done: int, wanted: int, names: Sequence[str]) -> str:
    """One finished trial in one line."""
    head = f"{done:>{len(str(wanted))}}/{wanted} trial {row['trial']:<3} {row['status']:<10}"
    what = f"reference: {RESIDENT}" if row["origin"] == "reference" else setting(row, names)
    if row["status"] != "ok":
        return f"{head} {row['status_reason']}  {what}"
    speed, memory, perplexity = (number(row[n], 4) for n in FIGURES)
    return f"{head} {speed:>6} tok/s {memory:>7} GB  ppl {perplexity:<6}  {what}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    """The knob's value; a dash where it had no effect."""
    return setting(row, [name]).partition("=")[2] or "-"
