"""Front plot: speed against each other objective, one panel each, as PNG and SVG.

The shape of a mark shows what a point is, so the plot reads in grey: filled circles are confirmed members of the front,
hollow circles unconfirmed ones, triangles undecided points, crosses dominated ones. The reference is a diamond; a square
marks the default, a ring the knee. Bars are 95 % intervals. A panel's staircase joins the members that no other member
beats in its two objectives.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from harness.analysis.counts import count
from harness.analysis.pareto import Analysis, Rows, analysed, knee, reference
from harness.decisions.recommend import default_trial
from harness.results.metrics import METRICS, SPEEDS
from harness.show.text import axis
from harness.study.titles import FACTS, title

from .figure import BLUE, FAINT, GREY, INK, RED, STYLE, save
from .labels import Label, place

if TYPE_CHECKING:
    import pandas as pd

LOG_ABOVE = 4.0  # a horizontal axis that spans more than this ratio is logarithmic
LOG_SPEED_ABOVE = 30.0  # a vertical axis that spans more than this ratio is logarithmic; otherwise it begins at 0
CUT_ABOVE = 4.0  # a dominated trial beyond this multiple of the front's worst is drawn at the edge
TITLE_TOP = 0.985  # share of the height
BOLD, PLAIN = 0.64, 0.53  # mean width of a letter, as a share of the size of the font
MOST_NUMBERED = 40  # members; the numbers of a larger front hide its points
MARKS: dict[str, Any] = {  # in the order of the legend
    "front, confirmed": {"marker": "o", "s": 62, "color": BLUE, "edgecolors": INK, "linewidths": 0.8, "zorder": 5},
    "front, unconfirmed": {"marker": "o", "s": 62, "facecolors": "white", "edgecolors": BLUE, "linewidths": 2, "zorder": 5},
    "undecided": {"marker": "^", "s": 40, "facecolors": "white", "edgecolors": GREY, "linewidths": 1.2, "zorder": 4},
    "dominated": {"marker": "x", "s": 22, "color": FAINT, "linewidths": 1.0, "zorder": 2},
    "reference (everything resident)": {"marker": "D", "s": 58, "facecolors": "white", "edgecolors": RED, "linewidths": 1.8,
                                        "zorder": 5},
    "default": {"marker": "s", "s": 190, "facecolors": "none", "edgecolors": INK, "linewidths": 1.4, "zorder": 6},
    "knee": {"marker": "o", "s": 210, "facecolors": "none", "edgecolors": INK, "linewidths": 1.4, "zorder": 6},
}  # fmt: skip
CONFIRMED, UNCONFIRMED, UNDECIDED, DOMINATED, REFERENCE, DEFAULT, KNEE = MARKS


def plot_front(rows: Rows, path: Path, **rules: Any) -> Path:
    """Draw the points of one study into a PNG and an SVG; returns the PNG's path.

    rules: keyword arguments of `front`. Raises `ResultsError` for rows with different evaluation texts.
    """
    with plt.rc_context(STYLE):
        save(draw_front(rows, **rules), path)
    return path


def draw_front(rows: Rows, **rules: Any) -> Figure:
    """One panel for each objective besides the speed, which is the vertical axis of all panels."""
    found = analysed(rows, **rules)
    kinds, objectives = _kinds(found), list(found.objectives)
    y = next((name for name in objectives if name in SPEEDS), objectives[0])
    across = [name for name in objectives if name != y]
    fig, grid = plt.subplots(
        1, len(across), sharey=True, squeeze=False, figsize=(1.5 + 4.9 * len(across), 5.6), dpi=160, layout="constrained"
    )
    engine: Any = fig.get_layout_engine()
    panels = dict(zip(across, grid[0], strict=True))
    for x, ax in panels.items():
        edge = _x_axis(ax, x, kinds)
        for name, some in kinds.items():
            inside, beyond = some[some[x] <= edge], some[some[x] > edge]
            ax.scatter(inside[x], inside[y], label=name, **MARKS[name])
            ax.scatter(np.full(len(beyond), edge), beyond[y], s=40, marker=">", color=FAINT, clip_on=False)
        _intervals(ax, kinds, x, y)
        ax.plot(*staircase(_members(kinds), x, y).T, color=INK, linewidth=1, alpha=0.4, zorder=3)
    _y_axis(grid[0][0], y, kinds)
    engine.set(rect=(0, 0, 1, _titles(fig, found.df, _members(kinds))))
    used = {name: handle for handle, name in zip(*grid[0][0].get_legend_handles_labels(), strict=True) if len(kinds[name])}
    if used:
        fig.legend(used.values(), used, loc="outside lower center", ncols=len(used), frameon=False, fontsize=9)
    fig.draw_without_rendering()  # makes the layout final, which the placement of labels needs
    fig.set_layout_engine("none")
    for x, ax in panels.items():
        _label(ax, kinds, x, y)
    return fig


def _kinds(found: Analysis) -> dict[str, pd.DataFrame]:
    """The points of each kind of mark. The default and the knee also belong to another kind."""
    every, resident = found.standings, reference(found)
    best = every[every["standing"] == "front"]
    sure = best["confirmed"].to_numpy(bool)
    return {
        CONFIRMED: best[sure],
        UNCONFIRMED: best[~sure],
        UNDECIDED: every[every["standing"] == "undecided"],
        DOMINATED: every[every["standing"] == "dominated"],
        REFERENCE: resident[resident[list(found.objectives)].notna().all(axis=1)],
        DEFAULT: every[every.index == default_trial(found.df)],
        KNEE: best[best.index == knee(found)],
    }


def _members(kinds: dict[str, pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([kinds[CONFIRMED], kinds[UNCONFIRMED]])


def _values(kinds: dict[str, pd.DataFrame], name: str, *which: str) -> np.ndarray:
    """The figures of the points of some kinds, or of all kinds, in one array."""
    return np.concatenate([np.empty(0), *(kinds[kind][name] for kind in which or kinds)]).astype(float)


def _x_axis(ax: Axes, x: str, kinds: dict[str, pd.DataFrame]) -> float:
    """Set up the horizontal axis; returns its right end.

    Much worse dominated points are drawn at the right end, because a scale with them would compress all others.
    """
    every, shown = _values(kinds, x), _values(kinds, x, CONFIRMED, UNCONFIRMED, REFERENCE, DEFAULT)
    ax.set_xlabel(axis(x))
    if not len(every):
        return np.inf
    edge = CUT_ABOVE * max(shown, default=every.max())
    low, high = every.min(), every[every <= edge].max(initial=max(shown, default=every.min()))
    if low > 0 and high / low > LOG_ABOVE:
        ax.set_xscale("log")
        left, right = low * (low / high) ** 0.06, high * (high / low) ** 0.06
        _plain(ax.xaxis, high / low)
    else:
        pad = 0.08 * (high - low) or 0.05 * low or 1.0  # all lossless settings have one perplexity
        left, right = low - pad, high + pad
        ax.xaxis.set_major_locator(MaxNLocator(7))
        ax.ticklabel_format(axis="x", useOffset=False)
    ax.set_xlim(left, right)
    if (every > right).any():
        ax.set_xlabel(f"{axis(x)}   (▸ beyond the edge)")
    return float(right)


def _y_axis(ax: Axes, y: str, kinds: dict[str, pd.DataFrame]) -> None:
    values = np.concatenate([_values(kinds, y), _values(kinds, f"{y}_high", CONFIRMED, UNCONFIRMED)])
    ax.set_ylabel(axis(y))
    if not len(values):
        ax.text(0.5, 0.5, "no trial on the front yet", transform=ax.transAxes, ha="center", color=GREY)
        return
    low, high = values.min(), values.max()
    if low > 0 and high / low > LOG_SPEED_ABOVE:
        ax.set_yscale("log")
        _plain(ax.yaxis, high / low)
    else:
        ax.set_ylim(0, 1.12 * high or 1.0)


def _plain(one: Any, ratio: float) -> None:
    """Label ticks with plain figures instead of powers of ten."""
    plain = FuncFormatter(lambda v, _: f"{v:g}")
    one.set_major_formatter(plain)
    one.set_minor_formatter(NullFormatter() if ratio > 30 else plain)


def _intervals(ax: Axes, kinds: dict[str, pd.DataFrame], x: str, y: str) -> None:
    best = _members(kinds)
    bars = [np.array([best[n] - best[f"{n}_low"], best[f"{n}_high"] - best[n]]).astype(float) for n in (x, y)]
    ax.errorbar(best[x], best[y], bars[1], bars[0], fmt="none", ecolor=GREY, elinewidth=0.9, alpha=0.6, zorder=3)


def staircase(best: pd.DataFrame, x: str, y: str) -> np.ndarray:
    """The corners, (n, 2), of the line through the members that no other beats in these two objectives."""
    order = best.sort_values([x, y], ascending=[METRICS[x] == "minimize", METRICS[y] == "minimize"])
    values = order[y] if METRICS[y] == "maximize" else -order[y]
    some = order[values > values.cummax().shift(fill_value=-np.inf)]
    return np.column_stack([some[x].repeat(2)[1:], some[y].repeat(2)[:-1]])


def _titles(fig: Figure, df: pd.DataFrame, best: pd.DataFrame) -> float:
    """Write title and subtitle, without effect on the panels' widths; returns the height of the panels, a share."""
    if df.empty:
        return 1.0
    drift = df["drift"].dropna() if "drift" in df else df["ssd_gbps"][:0]
    drifted = f", sentinel at {drift.min():.0%} to {drift.max():.0%} of its median speed" if len(drift) else ""
    counts = f"{len(best)} on the front, {int(best['confirmed'].sum())} confirmed{drifted}. {count(df)}"
    heading = f"{df['study'].iloc[0]}: {title({name: df[name] for name in FACTS})}"
    top = TITLE_TOP
    for text, size, weight, color, width, line in (
        (heading, 13, "bold", INK, BOLD, 0.045),
        (counts, 9, "normal", GREY, PLAIN, 0.032),
    ):
        written = textwrap.fill(text, int(fig.get_figwidth() / (width * size / 72)))
        fig.text(0.015, top, written, fontsize=size, va="top", fontweight=weight, color=color).set_in_layout(False)
        top -= line * (written.count("\n") + 1) + 0.01
    return min(0.85, top - 0.01)


def _label(ax: Axes, kinds: dict[str, pd.DataFrame], x: str, y: str) -> None:
    """Name reference, default and knee, and number the other members where there is space."""
    members = _members(kinds)
    labels = [Label("reference", row[x], row[y], RED, True) for _, row in kinds[REFERENCE].iterrows()]
    named = []
    for kind, name in ((DEFAULT, "default"), (KNEE, "knee")):
        for trial, row in kinds[kind].iterrows():
            labels.append(Label(f"{name} ({row['trial']})", row[x], row[y], INK, True))
            named.append(trial)
    if len(members) <= MOST_NUMBERED:
        labels += [Label(str(row["trial"]), row[x], row[y], GREY, False) for t, row in members.iterrows() if t not in named]
    lines = [staircase(members, x, y)]
    for _, row in members.iterrows():
        lines.append(np.array([[row[f"{x}_low"], row[y]], [row[f"{x}_high"], row[y]]], float))
        lines.append(np.array([[row[x], row[f"{y}_low"]], [row[x], row[f"{y}_high"]]], float))
    place(ax, labels, np.column_stack([_values(kinds, x), _values(kinds, y)]), lines)
