"""Panels: what a picture shows, as plain data, so that matplotlib and plotly draw the same.

Every study has a colour, a symbol and a dash, so that a picture reads in grey and with colour blindness (colours: Okabe and
Ito, 2008).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "solid")


@dataclass(frozen=True)
class Look:
    """Colour, symbol and dash of a study."""

    color: str
    symbol: str
    dash: str


def look(i: int) -> Look:
    """The look of study number `i`, from 0."""
    return Look(COLORS[i % len(COLORS)], SYMBOLS[i % len(SYMBOLS)], DASHES[i % len(DASHES)])


@dataclass(frozen=True)
class Series:
    """Points, a line, a band (x, y to y2) or horizontal bars (from x to x2 at y) of one study in one panel.

    `x_ends` and `y_ends`: (2, points), the ends of intervals. `text`: hover texts of plotly.
    """

    kind: Literal["points", "line", "band", "bars"]
    name: str
    look: Look
    x: np.ndarray
    y: np.ndarray
    y2: np.ndarray | None = None
    x2: np.ndarray | None = None
    x_ends: np.ndarray | None = None
    y_ends: np.ndarray | None = None
    text: tuple[str, ...] = ()
    filled: bool = True
    size: float = 7.0
    opacity: float = 1.0
    legend: bool = False
    label: tuple[str, ...] = ()  # written into bars


@dataclass(frozen=True)
class Panel:
    """One coordinate system. `rows`: names of y = 0, 1, 2 ..., the first on top."""

    title: str
    x_title: str
    y_title: str = ""
    series: tuple[Series, ...] = ()
    rows: tuple[str, ...] = ()
    line_at: float | None = None  # a vertical line
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log_x: bool = False


@dataclass(frozen=True)
class Picture:
    """Panels side by side under a title; `note` is a line below it."""

    title: str
    panels: tuple[Panel, ...]
    note: str = ""
    height: float = 4.6  # inches
    shared_rows: bool = field(default=False)  # only the first panel shows the names of rows
