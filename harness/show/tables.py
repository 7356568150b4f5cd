"""Tables: the front, the recommended settings and the importance of knobs, and one finished run as a line.

Widths follow the terminal, and no information is in colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import Knobs
from harness.analysis.importance import LEAST_POINTS, Importance
from harness.analysis.pareto import Rows, analysed, front, reference
from harness.decisions.recommend import Choice, default_trial, named, ratio
from harness.results.metrics import OBJECTIVES, SHORT

from .text import RESIDENT, number, setting, with_interval

SUSPECT = "all runs of this front are suspect (drift, heat or foreign load); measure again on a quiet machine"


def varying(df: pd.DataFrame) -> list[str]:
    """The knobs whose values differ between rows."""
    return [n for n in Knobs.names() if df[n].nunique(dropna=False) > 1]


def front_table(rows: Rows, width: int, *, most: int | None = None, **rules: Any) -> RenderableType:
    """The front, best in the first objective first: figures with intervals, the number of runs, default and reference.

    Each varying knob gets a column if all of them fit into `width`; otherwise the settings follow below the table. most: the
    rows of a live view, which has no settings below. rules: keyword arguments of `front`.
    """
    found = analysed(rows, **rules)
    best, default, objectives, df = front(found), default_trial(found.df), list(found.objectives), found.df
    shown = best if most is None else best.head(most)
    lines, names = pd.concat([shown, reference(found)]), varying(best)
    runs = df[df["status"] == "ok"].groupby("trial").size()
    figures = [*objectives, "hit_rate"]
    for columns, metrics in ((names, figures), ([], figures), ([], objectives)):  # the first that fits, else the last
        table = _table(lines, metrics, default, columns, runs)
        if Console(width=1000).measure(table).maximum <= width:
            break
    wide = columns != names
    below = [Text(f"… and {len(best) - len(shown)} more", style="dim")] if len(shown) < len(best) else []
    if best["suspect"].any():
        below.append(Text(SUSPECT, style="bold"))
    if most is not None:
        return Group(table, *below) if below else table
    unconfirmed = [Text("? unconfirmed: fresh runs are missing, or a rival is too close", style="dim")]
    settings: list[RenderableType] = [Text(), _settings(shown, names)] if wide else []
    return Group(table, *below, *(unconfirmed if not best["confirmed"].all() else []), *settings)


def _table(
    lines: pd.DataFrame, metrics: Sequence[str], default: int | None, columns: Sequence[str], every: pd.Series
) -> Table:
    """every: runs of each trial, suspect ones included; the column `runs` shows it for a point with suspect runs only."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("trial", *(SHORT[n] for n in metrics), "runs", "", *columns):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for label, row in lines.iterrows():
        is_reference = row["origin"] == "reference"
        sure = "" if is_reference or row["confirmed"] else " ?"
        tag = "reference" if is_reference else "default" if label == default else ""
        figures = [number(row[n], 2) if n == "hit_rate" else with_interval(row, n) for n in metrics]
        runs = f"{row['runs']}{sure}" if row["runs"] else f"{every[row['trial']]} suspect"
        cells = [*figures, runs, tag]
        style = "dim" if is_reference else ""
        table.add_row(str(row["trial"]), *cells, *[_cell(row, n) for n in columns], style=style)
    return table


def recommended_table(given: Rows, choices: Sequence[Choice]) -> Table:
    """The recommended settings, the default and the reference: figures, and the speed as a multiple of the default's."""
    found = analysed(given)
    objectives, rows = list(found.objectives), named(found, choices)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("", "trial", *(SHORT[n] for n in objectives), "x default", "runs", " "):
        table.add_column(name, justify="right" if name.strip() else "left", no_wrap=True)
    for name, point, choice in rows:
        if point is None:
            why = "not measured" if choice is None else "not met"
            table.add_row(name, *["-"] * (len(objectives) + 3), why)
            continue
        base = next((p for n, p, _ in rows if n == "default"), None)
        times = "-" if base is None else number(ratio(found, point, base)[0], 3)
        sure = "" if choice is None else "confirmed" if choice.confirmed else "unconfirmed"
        figures = [with_interval(point, n) for n in objectives]
        table.add_row(name, str(point["trial"]), *figures, times, str(point["runs"]), sure, style="" if choice else "dim")
    return table


def importance_rows(found: Importance) -> tuple[str, list[list[str]]]:
    """A line that explains the shares, and the table's rows: knob, then a share with its standard error per objective."""
    if not found.share:
        return f"Importance needs at least {LEAST_POINTS} points; there are {found.points}.", []
    head = (
        f"Importance of the knobs: share of an objective's variance that each knob alone explains, ± standard error, over "
        f"{found.points} points. In brackets: the share that a shuffled knob exceeds in 1 of 100 cases."
    )
    cell = lambda n, o: f"{found.share[n][o]:.1%} ± {found.error[n][o]:.1%} ({found.chance[n][o]:.1%})"  # noqa: E731
    return head, [[f"`{n}`", *(cell(n, o) for o in found.objectives)] for n in found.order]


def importance_table(found: Importance) -> RenderableType:
    """`importance_rows` for a terminal."""
    head, rows = importance_rows(found)
    if not rows:
        return Text(head)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("knob", *found.objectives):
        table.add_column(name, justify="left" if name == "knob" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell.strip("`") for cell in row))
    return Group(Text(head), Text(), table)


def _settings(rows: pd.DataFrame, names: Sequence[str]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(justify="right", min_width=5)
    grid.add_column(overflow="fold")
    for _, row in rows.iterrows():
        grid.add_row(str(row["trial"]), setting(row, names))
    return grid


def trial_line(row: Mapping[str, Any], done: int, wanted: int, names: Sequence[str]) -> str:
    """One finished run in one line."""
    again = f" run {row['run']} ({row['origin']})" if (row.get("run") or 0) > 0 else ""
    head = f"{done:>{len(str(wanted))}}/{wanted} trial {row['trial']:<3} {row['status']:<10}"
    knobs = f"reference: {RESIDENT}" if row["origin"] == "reference" else setting(row, names)
    if row["status"] != "ok":
        return f"{head}{again} {row['status_reason']}  {knobs}"
    names_given = row.get("objectives")
    objectives = names_given.split(",") if isinstance(names_given, str) else list(OBJECTIVES)
    figures = "  ".join(f"{number(row[n], 4):>6} {SHORT[n]}" for n in objectives)
    violated = f"  ({row['violated']})" if row.get("violated") else ""
    ended, copied = "", row.get("quality_from_trial")
    if isinstance(row.get("scoring_stopped"), str) and (copied is None or copied != copied):
        ended = f"  (scoring ended after {row['scored_tokens']} tokens: {row['scoring_stopped']})"
    return f"{head}{again} {figures}  {knobs}{violated}{ended}"


def _cell(row: Mapping[str, Any], name: str) -> str:
    """The knob's value; a dash if it has no effect in the row."""
    return setting(row, [name]).partition("=")[2] or "-"
