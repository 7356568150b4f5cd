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
    """The front, fastest first, with knee and reference marked; of a front longer than `most` only its first rows."""
    best, marked = front(df), knee(df)
    reference = df[(df["origin"] == "reference") & (df["status"] == "ok")]
    shown = best if most is None else best.head(most)
    rows = pd.concat([shown, reference])
    names = varying(best)
    columns = [*FIGURES.values(), "hit"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("trial", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    wide = width >= 52 + sum(len(n) + 1 for n in names)
    for name in names if wide else ["setting"]:
        table.add_column(name, justify="right" if wide else "left", no_wrap=wide, overflow="fold")
    for label, row in rows.iterrows():
        is_reference = row["origin"] == "reference"
        tag = "reference" if is_reference else KNEE if label == marked else ""
        figures = [number(row[n], 4) for n in FIGURES] + [number(row["hit_rate"], 2)]
        cells = [_cell(row, n) for n in names] if wide else [RESIDENT if is_reference else setting(row, names)]
        style = "bold" if tag == KNEE else "dim" if is_reference else None
        table.add_row(str(row["trial"]), *figures, tag, *cells, style=style)
    if most is not None and len(best) > most:
        return Group(table, Text(f"… and {len(best) - most} more", style="dim"))
    return table


def trial_line(row: Mapping[str, Any], done: int, wanted: int, names: Sequence[str]) -> str:
    """One finished trial in one line."""
    head = f"{done:>{len(str(wanted))}}/{wanted} trial {row['trial']:<3} {row['status']:<10}"
    if row["status"] == "ok":
        head += " ".join(f"{number(row[n], 4)} {unit}" for n, unit in FIGURES.items()).replace(" perplexity", "")
        head = head.replace(" GB ", " GB  ppl ").replace(" tok/s ", " tok/s  ")
    else:
        head += str(row["status_reason"])
    what = f"reference: {RESIDENT}" if row["origin"] == "reference" else setting(row, names)
    return f"{head}  {what}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    """The knob's value; a dash where it had no effect."""
    return setting(row, [name]).partition("=")[2] or "-"
