"""Planes: the fronts of several studies in every plane of two objectives, with attainment bands.

Filled marks are confirmed members of a front, hollow ones unconfirmed; faint dots are the other measured settings. A line is
the median front, the band about it lies between the surfaces that 25 and 75 of 100 draws attain.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from engine import Knobs
from harness import ResultsError
from harness.analysis.hypervolume import shared_objectives
from harness.compare.identity import fact
from harness.compare.sides import Side
from harness.results.metrics import METRICS, SHORT, SPEEDS
from harness.results.rows import shared_texts
from harness.show.text import axis, number, setting

from .attainment import best_at, surfaces
from .panel import Look, Panel, Picture, Series, look

BAND = 0.22  # opacity
PAD = 0.06  # of the range, on each side
CUT = 2.0  # a range reaches at most so many ranges of the fronts beyond them


def planes(sides: Sequence[Side]) -> Picture:
    """One panel for each plane. Raises `ResultsError` for studies of other evaluation texts or objectives."""
    frames = [side.df for side in sides]
    shared_texts(*frames)
    objectives = shared_objectives(*frames)
    pairs = [(y, x) if y not in SPEEDS and x in SPEEDS else (x, y) for y, x in itertools.combinations(objectives, 2)]
    note = "filled: confirmed, hollow: not confirmed; line: median front, band: 25 to 75 % of its draws"
    return Picture("Fronts", tuple(_panel(sides, x, y) for x, y in pairs), note)


def title_of(side: Side) -> str:
    """The name of a study in a legend, with its device and the limit of its disk."""
    limit = fact(side, "ssd_gbps")
    device = fact(side, "device") if fact(side, "device") != "unknown" else fact(side, "cpu")
    return f"{side.name} ({device}{f', {limit} GB/s' if limit != 'unlimited' else ''})"


def hover(side: Side, point: Any) -> str:
    """Study, trial, figures and knobs of a point."""
    names = [n for n in Knobs.names() if point[n] == point[n] and point[n] is not None]
    figures = ", ".join(f"{number(float(point[n]), 4)} {SHORT[n]}" for n in side.metrics)
    knobs = setting(point, names).replace(" ", "<br>")
    return f"<b>{side.name}, trial {point['trial']}</b><br>{figures}<br>{knobs}"


def points(side: Side, some: pd.DataFrame, x: str, y: str, **how: Any) -> Series:
    """The points of a study in a plane, with their hover texts; intervals if `bars`."""
    bars = how.pop("bars", False)
    ends = [some[[f"{n}_low", f"{n}_high"]].to_numpy(float).T if bars else None for n in (x, y)]
    texts = tuple(hover(side, point) for _, point in some.iterrows())
    xs, ys = (some[n].to_numpy(float) for n in (x, y))
    return Series("points", x=xs, y=ys, x_ends=ends[0], y_ends=ends[1], text=texts, **how)


def _panel(sides: Sequence[Side], x: str, y: str) -> Panel:
    x_range, y_range = (_range([side.front[n].to_numpy(float) for side in sides], _every(sides, n)) for n in (x, y))
    if y in SPEEDS:
        y_range = (0.0, y_range[1])
    series: list[Series] = []
    for i, side in enumerate(sides):
        style, front = look(i), side.front
        others = side.measured.drop(front.index)
        series.append(points(side, others, x, y, name=side.name, look=style, size=3.5, opacity=0.3))
        series += _surfaces(side, style, x, y, x_range, y_range)
        for sure in (True, False):
            some = front[front["confirmed"] == sure]
            name = title_of(side)
            if len(some):
                series.append(points(side, some, x, y, name=name, look=style, filled=sure, legend=sure or not
                                     front["confirmed"].any(), bars=True))  # fmt: skip
    return Panel(f"{SHORT[y]} against {SHORT[x]}", axis(x), axis(y), tuple(series), x_range=x_range, y_range=y_range)


def _surfaces(
    side: Side, style: Look, x: str, y: str, x_range: tuple[float, float], y_range: tuple[float, float]
) -> list[Series]:
    """The median front and its band, up to the edge of the panel; none without moocore."""
    try:
        found = surfaces(side, x, y)
    except ResultsError as e:
        warnings.warn(str(e), stacklevel=2)
        return []
    worst_x = x_range[1] if METRICS[x] == "minimize" else x_range[0]
    worst_y = y_range[1] if METRICS[y] == "minimize" else y_range[0]
    at = np.unique(np.concatenate([*(corners[:, 0] for corners in found.values()), [worst_x]]))
    low, middle, high = (best_at(corners, at, x, y) for corners in found.values())
    known = ~np.isnan(low)
    floor = np.nanmax(low[known]) if METRICS[y] == "minimize" else np.nanmin(low[known])
    bottom = min(floor, worst_y) if METRICS[y] == "minimize" else max(floor, worst_y)
    high = np.where(np.isnan(high), bottom, high)
    band = Series("band", side.name, style, at[known], low[known], y2=high[known], opacity=BAND)
    drawn = ~np.isnan(middle)
    return [band, Series("line", side.name, style, at[drawn], middle[drawn])]


def _every(sides: Sequence[Side], name: str) -> np.ndarray:
    return np.concatenate([side.measured[name].to_numpy(float) for side in sides])


def _range(fronts: Sequence[np.ndarray], every: np.ndarray) -> tuple[float, float]:
    """The range of the fronts and of what lies within `CUT` ranges of them."""
    best = np.concatenate(fronts)
    span = (best.max() - best.min()) or 0.05 * abs(best.max()) or 1.0
    near = every[(every >= best.min() - CUT * span) & (every <= best.max() + CUT * span)]
    low, high = min(near.min(), best.min()), max(near.max(), best.max())
    pad = PAD * ((high - low) or span)
    return float(low - pad), float(high + pad)
