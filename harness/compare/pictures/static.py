"""Static pictures: draws a picture with matplotlib."""

from __future__ import annotations

import textwrap
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from harness.show.plots.figure import GREY, INK, STYLE

from .panel import Panel, Picture, Series

MARKERS = {"circle": "o", "square": "s", "triangle-up": "^", "diamond": "D", "triangle-down": "v", "cross": "P"}
LINES: dict[str, Any] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}
WIDTH = 4.3  # inches a panel
LETTERS = 17  # characters that fit into an inch of small text


def draw_static(picture: Picture) -> Figure:
    """The picture as a figure of matplotlib, which the caller closes."""
    n = len(picture.panels)
    labelled = picture.panels[:1] if picture.shared_rows else picture.panels
    names = sum(max((len(row) for row in panel.rows), default=0) for panel in labelled)
    with plt.rc_context(STYLE):
        width = WIDTH * n + 0.075 * names
        fig, grid = plt.subplots(
            1, n, figsize=(width, picture.height), dpi=110, layout="constrained", squeeze=False,
        )  # fmt: skip
        for k, (ax, panel) in enumerate(zip(grid[0], picture.panels, strict=True)):
            _panel(ax, panel, names=not (picture.shared_rows and k))
        note = textwrap.wrap(picture.note, int(LETTERS * width))
        inch = 1 / picture.height
        layout: Any = fig.get_layout_engine()
        layout.set(rect=(0, 0, 1, 1 - (0.35 + 0.16 * len(note)) * inch))  # the title takes the rest
        fig.text(0.01, 1 - 0.08 * inch, picture.title, va="top", fontsize=12, fontweight="bold").set_in_layout(False)
        fig.text(0.01, 1 - 0.32 * inch, "\n".join(note), va="top", fontsize=8.5, color=GREY).set_in_layout(False)
        handles: dict[str, Any] = {}
        for ax in grid[0]:
            for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
                handles.setdefault(name, handle)
        if handles:
            columns = max(1, min(len(handles), int(width / 4.0)))
            fig.legend(handles.values(), handles, loc="outside lower left", ncols=columns, frameon=False, fontsize=9)
    return fig


def _panel(ax: Axes, panel: Panel, *, names: bool) -> None:
    if panel.line_at is not None:
        ax.axvline(panel.line_at, color=INK, linewidth=1, zorder=1)
    for one in panel.series:
        _series(ax, one)
    ax.set_title(panel.title, fontsize=10, loc="left")
    ax.set_xlabel(panel.x_title)
    ax.set_ylabel(panel.y_title)
    if panel.rows:
        ax.set_yticks(range(len(panel.rows)), panel.rows if names else [""] * len(panel.rows))
        ax.set_ylim(len(panel.rows) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
    elif panel.y_range:
        ax.set_ylim(*panel.y_range)
    if panel.log_x:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.ticklabel_format(axis="x", useOffset=False)
    if panel.x_range:
        ax.set_xlim(*panel.x_range)


def _series(ax: Axes, one: Series) -> None:
    color, name = one.look.color, one.name if one.legend else None
    if one.kind == "band":
        assert one.y2 is not None
        ax.fill_between(one.x, one.y, one.y2, step="post", color=color, alpha=one.opacity, linewidth=0, label=name, zorder=2)
    elif one.kind == "line":
        ax.step(one.x, one.y, where="post", color=color, linestyle=LINES[one.look.dash], linewidth=1.5, label=name, zorder=3)
    elif one.kind == "bars":
        assert one.x2 is not None
        ax.barh(one.y, one.x2 - one.x, 0.62, one.x, color=color, alpha=one.opacity, edgecolor="white", label=name)
        for x, x2, y, text in zip(one.x, one.x2, one.y, one.label, strict=True):
            if x2 - x > 0.08:
                ax.text((x + x2) / 2, y, text, ha="center", va="center", fontsize=8, color=INK)
    else:
        if one.x_ends is not None or one.y_ends is not None:
            ax.errorbar(
                one.x, one.y, _bars(one.y, one.y_ends), _bars(one.x, one.x_ends), fmt="none", ecolor=color, elinewidth=1.1,
                alpha=0.75, zorder=3,
            )  # fmt: skip
        ax.scatter(
            one.x, one.y, s=one.size**2, marker=MARKERS[one.look.symbol], facecolors=color if one.filled else "white",
            edgecolors=color, alpha=one.opacity, linewidths=1.3 if not one.filled else 0.4, label=name, zorder=4,
        )  # fmt: skip


def _bars(values: np.ndarray, ends: np.ndarray | None) -> np.ndarray | None:
    return None if ends is None else np.nan_to_num(np.maximum([values - ends[0], ends[1] - values], 0))
