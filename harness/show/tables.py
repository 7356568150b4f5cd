"""Rows and points as text: the front as a table, one run as a line. Widths follow the terminal; nothing by colour alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from engine import Knobs
from engine.effective import effective
from harness.analysis.importance import LEAST_POINTS, Importance
from harness.analysis.pareto import front, reference
from harness.decisions.recommend import Choice, default_trial, named, ratio
from harness.results.metrics import METRICS, OBJECTIVES, SHORT, SPEEDS, objectives_of

RESIDENT = "everything resident"
SUSPECT = "all runs are suspect (drift, heat or foreign load), so this front is too: measure again on a quiet machine"


def number(value: Any, digits: int = 3) -> str:
    """A figure or a knob's value, as short as it can be said."""
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return str(value)


def setting(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """`name=value` for the given knobs, without those that had no effect."""
    live = _live(row)
    return " ".join(f"{n}={'unset' if live[n] is None else number(live[n], 4)}" for n in names if n in live)


def varying(df: pd.DataFrame) -> list[str]:
    """The knobs that are not the same in all rows."""
    return [n for n in Knobs.names() if df[n].nunique(dropna=False) > 1]


def with_interval(row: Mapping[str, Any], metric: str) -> str:
    """A metric with half its 95 % interval, `45.2 ±1.3`; the figure alone where runs do not differ."""
    value, low, high = (float(row[f"{metric}{end}"]) for end in ("", "_low", "_high"))
    half = (high - low) / 2
    if metric not in SPEEDS or not half > 0:
        return number(value, 4)
    decimals = max(0, len(number(value, 3).partition(".")[2]))
    return f"{value:.{decimals}f} ±{half:.{decimals}f}"


def front_table(df: pd.DataFrame, width: int, *, most: int | None = None, **rules: Any) -> RenderableType:
    """The front, best in the first objective first, with default and reference marked, speeds with their intervals, and how
    many runs each point has: a column a knob where they fit, else settings below.

    A live view asks for `most` rows, and then gets no settings below. `rules` are those of `front`.
    """
    best, default, objectives = front(df, **rules), default_trial(df), list(objectives_of(df))
    shown = best if most is None else best.head(most)
    lines, names = pd.concat([shown, reference(df)]), varying(best)
    runs = df[df["status"] == "ok"].groupby("trial").size()
    figures = [*objectives, "hit_rate"]
    for columns, metrics in ((names, figures), ([], figures), ([], objectives)):  # the first that fits, or the last
        table = _table(lines, metrics, default, columns, runs)
        if Console(width=1000).measure(table).maximum <= width:
            break
    wide = columns != names
    below = [Text(f"… and {len(best) - len(shown)} more", style="dim")] if len(shown) < len(best) else []
    if best["suspect"].any():  # then all are
        below.append(Text(SUSPECT, style="bold"))
    if most is not None:
        return Group(table, *below) if below else table
    said = [Text("? unconfirmed: fresh runs are missing, or a rival is too near", style="dim")]
    settings: list[RenderableType] = [Text(), _settings(shown, names)] if wide else []
    return Group(table, *below, *(said if not best["confirmed"].all() else []), *settings)


def _table(
    lines: pd.DataFrame, metrics: Sequence[str], default: int | None, columns: Sequence[str], every: pd.Series
) -> Table:
    """`every`: runs of each trial, the suspect ones among them, which the column `runs` counts where there are no others."""
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


def recommended_table(df: pd.DataFrame, choices: Sequence[Choice]) -> Table:
    """The recommended settings, then default and reference: figures, and how many times as fast as the default each is."""
    objectives, rows = list(objectives_of(df)), named(df, choices)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("", "trial", *(SHORT[n] for n in objectives), "x default", "runs", " "):
        table.add_column(name, justify="right" if name.strip() else "left", no_wrap=True)
    for name, point, choice in rows:
        if point is None:
            why = "not measured" if choice is None else "not met"
            table.add_row(name, *["-"] * (len(objectives) + 3), why)
            continue
        base = next((p for n, p, _ in rows if n == "default"), None)
        times = "-" if base is None else number(ratio(df, point, base)[0], 3)
        sure = "" if choice is None else "confirmed" if choice.confirmed else "unconfirmed"
        figures = [with_interval(point, n) for n in objectives]
        table.add_row(name, str(point["trial"]), *figures, times, str(point["runs"]), sure, style="" if choice else "dim")
    return table


def importance_rows(found: Importance) -> tuple[list[str], list[list[str]]]:
    """Lines that say what the shares are, and the rows of the table: knob, then a share with its standard error for each
    objective."""
    if not found.share:
        return [f"Importance is shown from {LEAST_POINTS} points on; there are {found.points}."], []
    head = (
        f"Importance of the knobs: share of an objective's variance that each alone explains ± its standard error, over "
        f"{found.points} points. In brackets: what a shuffled knob gets in 1 of 100 cases."
    )
    cell = lambda n, o: f"{found.share[n][o]:.1%} ± {found.error[n][o]:.1%} ({found.chance[n][o]:.1%})"  # noqa: E731
    return [head], [[f"`{n}`", *(cell(n, o) for o in found.objectives)] for n in found.order]


def importance_table(found: Importance) -> RenderableType:
    """`importance_rows` for a terminal."""
    head, rows = importance_rows(found)
    if not rows:
        return Text(head[0])
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for name in ("knob", *found.objectives):
        table.add_column(name, justify="left" if name == "knob" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell.strip("`") for cell in row))
    return Group(Text(head[0]), Text(), table)


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
    what = f"reference: {RESIDENT}" if row["origin"] == "reference" else setting(row, names)
    if row["status"] != "ok":
        return f"{head}{again} {row['status_reason']}  {what}"
    said = row.get("objectives")
    objectives = str(said).split(",") if isinstance(said, str) else list(OBJECTIVES)
    if objectives == list(OBJECTIVES):
        speed, memory, perplexity = (number(row[n], 4) for n in OBJECTIVES)
        figures = f"{speed:>6} tok/s {memory:>7} GB  ppl {perplexity:<6}"
    else:
        figures = "  ".join(f"{number(row[n], 4):>6} {SHORT[n]}" for n in objectives)
    violated = f"  ({row['violated']})" if row.get("violated") else ""
    return f"{head}{again} {figures}  {what}{violated}"


def axis(metric: str) -> str:
    """A metric as an axis says it."""
    return f"{metric}   ({'more' if METRICS[metric] == 'maximize' else 'less'} is better)"


def _live(row: Mapping[str, Any]) -> dict[str, Any]:
    return effective({n: (None if row[n] != row[n] else row[n]) for n in Knobs.names()})


def _cell(row: Mapping[str, Any], name: str) -> str:
    """The knob's value; a dash where it had no effect."""
    return setting(row, [name]).partition("=")[2] or "-"
