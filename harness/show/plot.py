"""The front as a picture: speed against each other objective, side by side; and all runs over time. PNG, and SVG beside it.

What a point is shows in its shape, so that a picture printed in grey says as much: filled circles are confirmed members of
the front, hollow ones unconfirmed; triangles are undecided between near rivals, crosses dominated; the reference is a
diamond, the default in a square, the knee in a ring. Bars are 95 % intervals, and a panel's staircase runs through those
members that no other beats in its two objectives.
"""

from __future__ import annotations

import itertools
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from engine.system import atomic
from harness.analysis.counts import count
from harness.analysis.estimates import suspect_runs
from harness.analysis.pareto import knee, reference, standings
from harness.decisions.recommend import default_trial
from harness.results.columns import NOT_RUN, STATUSES
from harness.results.metrics import METRICS, SPEEDS, objectives_of
from harness.study.titles import FACTS, title

from .tables import axis

if TYPE_CHECKING:
    import pandas as pd

INK, BLUE, FAINT, RED, GREY = "#20262e", "#1f5a96", "#9aa3ad", "#c0392b", "#59636e"
LOG_ABOVE = 4.0  # an axis sideways that spans more than this ratio is logarithmic
LOG_SPEED_ABOVE = 30.0  # and one upwards that spans more than this; else it begins at 0
MARK = 7.0  # half the extent of the largest mark, points
CUT_ABOVE = 4.0  # a dominated trial this many times worse than the front's worst is drawn at the edge
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.grid": True,
    "grid.color": "#eceff2",
    "axes.axisbelow": True,
    "svg.hashsalt": "headrace",  # else each picture of the same rows is another file
}
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


def plot_front(df: pd.DataFrame, path: Path, **rules: Any) -> Path:
    """Draw the points of one study into a PNG and an SVG; returns the PNG's path. Raises `ResultsError` for rows of several
    judges."""
    with plt.rc_context(STYLE):
        _save(draw_front(df, **rules), path)
    return path


def plot_night(df: pd.DataFrame, path: Path) -> Path | None:
    """Draw all runs over time by status, and the sentinel's speed with suspect stretches shaded; None without times."""
    rows = df[df["started_at"].notna()].sort_values("started_at")
    if rows.empty:
        return None
    hours = (rows["started_at"] - rows["started_at"].iloc[0]).dt.total_seconds() / 3600
    bad = suspect_runs(rows)
    sentinel = (rows["origin"] == "sentinel") & (rows["status"] == "ok")
    if sentinel.any():  # with the run that it repeats
        sentinel |= rows["trial"].isin(rows.loc[sentinel, "trial"]) & (rows["status"] == "ok")
    kinds = [s for s in STATUSES if (rows["status"] == s).any()]
    with plt.rc_context(STYLE):
        fig, (top, low) = plt.subplots(2, sharex=True, figsize=(9, 4.5), dpi=160, layout="constrained", height_ratios=[3, 2])
        for start, wall in zip(hours[bad], rows.loc[bad, "wall_s"].fillna(0), strict=True):
            for ax in (top, low):
                ax.axvspan(start, start + max(wall / 3600, 0.003 * hours.max()), color=RED, alpha=0.12, linewidth=0)
        top.scatter(
            hours[~sentinel], rows.loc[~sentinel, "decode_tok_s"], s=10, color=FAINT, linewidths=0, label="other runs"
        )
        top.plot(hours[sentinel], rows.loc[sentinel, "decode_tok_s"], marker="o", markersize=4, color=INK, linewidth=1,
                 label="sentinel: the default, measured again")  # fmt: skip
        top.plot([], [], color=RED, alpha=0.3, linewidth=6, label="suspect")
        top.set_ylim(bottom=0)
        top.set_ylabel("decode_tok_s")
        top.legend(loc="lower right", frameon=False, fontsize=8, ncols=3)
        top.set_title("Runs over time", loc="left", fontsize=12, fontweight="bold")
        for i, kind in enumerate(kinds):
            of = rows["status"] == kind
            color = INK if kind == "ok" else FAINT if kind in (*NOT_RUN, "stopped") else RED
            low.scatter(hours[of], np.full(of.sum(), i), s=12, marker="|", color=color)
        low.set_yticks(range(len(kinds)), [f"{k} ({(rows['status'] == k).sum()})" for k in kinds])
        low.set_ylim(-0.6, len(kinds) - 0.4)
        low.set_xlabel("hours since the first run")
        _save(fig, path)
    return path


def _save(fig: Figure, path: Path) -> None:
    """Each file whole or not at all, for a reader may look at any moment; without a date, so that it is the same again."""
    for kind in ("png", "svg"):
        with atomic.replacing(path.with_suffix(f".{kind}"), durable=False) as partial:
            fig.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(fig)


def draw_front(df: pd.DataFrame, **rules: Any) -> Figure:
    """A panel for each objective besides the speed, which goes upwards in all of them."""
    kinds = _kinds(df, **rules)
    objectives = list(objectives_of(df))
    y = next((name for name in objectives if name in SPEEDS), objectives[0])
    across = [name for name in objectives if name != y]
    fig, grid = plt.subplots(
        1, len(across), sharey=True, squeeze=False, figsize=(1.5 + 4.9 * len(across), 5.6), dpi=160, layout="constrained"
    )
    engine: Any = fig.get_layout_engine()
    engine.set(rect=(0, 0, 1, 0.85))  # the title is above
    panels = dict(zip(across, grid[0], strict=True))
    for x, ax in panels.items():
        edge = _x_axis(ax, x, kinds)
        for name, some in kinds.items():
            inside, beyond = some[some[x] <= edge], some[some[x] > edge]
            ax.scatter(inside[x], inside[y], label=name, **MARKS[name])
            ax.scatter(np.full(len(beyond), edge), beyond[y], s=40, marker=">", color=FAINT, clip_on=False)
        _intervals(ax, kinds, x, y)
        ax.plot(*_staircase(_members(kinds), x, y).T, color=INK, linewidth=1, alpha=0.4, zorder=3)
    _y_axis(grid[0][0], y, kinds)
    _titles(fig, df, _members(kinds))
    used = {name: handle for handle, name in zip(*grid[0][0].get_legend_handles_labels(), strict=True) if len(kinds[name])}
    if used:
        fig.legend(used.values(), used, loc="outside lower center", ncols=len(used), frameon=False, fontsize=9)
    fig.draw_without_rendering()  # fixes the layout, so that labels can be put where there is room
    fig.set_layout_engine("none")
    for x, ax in panels.items():
        _label(ax, kinds, x, y)
    return fig


def _kinds(df: pd.DataFrame, **rules: Any) -> dict[str, pd.DataFrame]:
    """The points of each kind of mark; default and knee are points of another kind as well."""
    every, resident = standings(df, **rules), reference(df)
    best = every[every["standing"] == "front"]
    sure = best["confirmed"].to_numpy(bool)
    return {
        CONFIRMED: best[sure],
        UNCONFIRMED: best[~sure],
        UNDECIDED: every[every["standing"] == "undecided"],
        DOMINATED: every[every["standing"] == "dominated"],
        REFERENCE: resident[resident[list(objectives_of(df))].notna().all(axis=1)],
        DEFAULT: every[every.index == default_trial(df)],
        KNEE: best[best.index == knee(df, **rules)],
    }


def _members(kinds: dict[str, pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat([kinds[CONFIRMED], kinds[UNCONFIRMED]])


def _values(kinds: dict[str, pd.DataFrame], name: str, *which: str) -> np.ndarray:
    """The figures of the points of some kinds, in one array; empty if there is none."""
    return np.concatenate([np.empty(0), *(kinds[kind][name] for kind in which or kinds)]).astype(float)


def _x_axis(ax: Axes, x: str, kinds: dict[str, pd.DataFrame]) -> float:
    """Set up the x axis; returns its right end, where much worse dominated points are drawn, lest they squash the rest."""
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
        pad = 0.08 * (high - low) or 0.05 * low or 1.0  # one perplexity for all lossless settings is a range too
        left, right = low - pad, high + pad
        ax.xaxis.set_major_locator(MaxNLocator(7))
        ax.ticklabel_format(axis="x", useOffset=False)
    ax.set_xlim(left, right)
    if (every > right).any():
        ax.set_xlabel(f"{axis(x)}   (▸ at the edge: beyond it)")
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
    """Figures as they are said, not as powers of ten."""
    plain = FuncFormatter(lambda v, _: f"{v:g}")
    one.set_major_formatter(plain)
    one.set_minor_formatter(NullFormatter() if ratio > 30 else plain)


def _intervals(ax: Axes, kinds: dict[str, pd.DataFrame], x: str, y: str) -> None:
    best = _members(kinds)
    bars = [np.array([best[n] - best[f"{n}_low"], best[f"{n}_high"] - best[n]]).astype(float) for n in (x, y)]
    ax.errorbar(best[x], best[y], bars[1], bars[0], fmt="none", ecolor=GREY, elinewidth=0.9, alpha=0.6, zorder=3)


def _staircase(best: pd.DataFrame, x: str, y: str) -> np.ndarray:
    """(corners, 2) of the line through the members that no other beats in these two objectives."""
    order = best.sort_values([x, y], ascending=[METRICS[x] == "minimize", METRICS[y] == "minimize"])
    values = order[y] if METRICS[y] == "maximize" else -order[y]
    some = order[values > values.cummax().shift(fill_value=-np.inf)]
    return np.column_stack([some[x].repeat(2)[1:], some[y].repeat(2)[:-1]])


def _titles(fig: Figure, df: pd.DataFrame, best: pd.DataFrame) -> None:
    """Above the panels, whose widths do not follow it."""
    if df.empty:
        return
    drift = df["drift"].dropna() if "drift" in df else df["ssd_gbps"][:0]
    drifted = f", sentinel at {drift.min():.0%} to {drift.max():.0%} of itself" if len(drift) else ""
    said = f"{len(best)} on the front, {int(best['confirmed'].sum())} confirmed{drifted}. {count(df)}"
    what = f"{df['study'].iloc[0]}: {title({name: df[name] for name in FACTS})}"
    head = textwrap.fill(what, 60 * len(fig.axes))
    fig.text(0.015, 0.985, head, fontsize=13, fontweight="bold", va="top").set_in_layout(False)
    said = textwrap.fill(said, 90 * len(fig.axes))
    fig.text(0.015, 0.93, said, fontsize=9, color=GREY, va="top").set_in_layout(False)


def _label(ax: Axes, kinds: dict[str, pd.DataFrame], x: str, y: str) -> None:
    """Name reference, default and knee, and number the other members where there is room for it."""
    members = _members(kinds)
    names = {REFERENCE: "reference", DEFAULT: "default", KNEE: "knee"}
    wanted = [(row, f"{text} ({row['trial']})" if kind != REFERENCE else text, RED if kind == REFERENCE else INK, True)
              for kind, text in names.items() for _, row in kinds[kind].iterrows()]  # fmt: skip
    named = {row["trial"] for row, *_ in wanted}
    wanted += [(row, str(row["trial"]), GREY, False) for t, row in members.iterrows() if t not in named]
    every = ax.transData.transform(np.column_stack([_values(kinds, x), _values(kinds, y)]))
    lines = [_staircase(members, x, y)]
    for _, row in members.iterrows():
        lines += [np.array([[row[f"{x}_low"], row[y]], [row[f"{x}_high"], row[y]]], float)]
        lines += [np.array([[row[x], row[f"{y}_low"]], [row[x], row[f"{y}_high"]]], float)]
    pieces = [np.linspace(a, b, 30) for line in lines for a, b in itertools.pairwise(ax.transData.transform(line))]
    along, taken = np.concatenate([np.empty((0, 2)), *pieces]), list[np.ndarray]()
    for row, text, color, must in wanted:
        note: Any = ax.annotate(text, (row[x], row[y]), (0, 0), textcoords="offset points", fontsize=9 if must else 7.5,
                                color=color, ha="center", va="center", zorder=7,
                                arrowprops={"arrowstyle": "-", "color": color, "linewidth": 0.6, "shrinkB": 6})  # fmt: skip
        found = _room(ax, note, every, along, taken)
        if found is None and not must:
            note.remove()
            continue
        offset, box, far = found or (np.array([0.0, 26.0]), np.zeros(4), True)
        taken.append(box)
        note.set_position(offset)
        note.arrow_patch.set_visible(far)


def _room(
    ax: Axes, note: Any, points: np.ndarray, line: np.ndarray, taken: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, bool] | None:
    """Where a label covers no point and no other label, lies within its panel, near its point and on little of `line`: its
    offset in points, its box in pixels and whether it is so far that it needs a leader. None if there is no such place."""
    text = matplotlib.text.Text.get_window_extent(note)
    per_point = ax.figure.dpi / 72
    half = np.array([text.width, text.height]) / 2 + 2 * per_point
    at, frame = ax.transData.transform(note.xy), ax.get_window_extent()
    best: tuple[float, np.ndarray, np.ndarray, bool] | None = None
    for distance, angle in itertools.product((10, 17, 26, 40, 60, 85, 115), np.radians(np.arange(0, 360, 15))):
        way = np.array([np.cos(angle), np.sin(angle)])
        centre = at + way * (distance * per_point + half * np.abs(way))
        box = np.concatenate([centre - half, centre + half])
        margin = np.array([-1, -1, 1, 1]) * MARK * per_point  # a mark has an extent
        if not (frame.x0 < box[0] and box[2] < frame.x1 and frame.y0 < box[1] and box[3] < frame.y1 + 12 * per_point):
            continue
        if _within(points, box + margin).any() or any((box[:2] < t[2:]).all() and (t[:2] < box[2:]).all() for t in taken):
            continue
        nearest = points[np.hypot(*(points - centre).T).argmin()]
        leader = distance > 20 or not np.allclose(nearest, at)
        cost = distance + 4.0 * _within(line, box).sum() + 12.0 * leader
        if best is None or cost < best[0]:
            best = cost, (centre - at) / per_point, box, leader
    return None if best is None else best[1:]


def _within(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    return np.asarray(((points > box[:2]) & (points < box[2:])).all(axis=1))
