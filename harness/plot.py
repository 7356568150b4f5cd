"""The front as a picture: speed against perplexity, memory as colour (or whatever the objectives are), 95 % intervals as
bars, unconfirmed points hollow, dominated trials faint, knee and reference named. And the night: all runs over time.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from .columns import METRICS, NOT_RUN, SHORT, SPEEDS, STATUSES, objectives_of
from .front import front, knee, measured, reference
from .points import suspect_runs
from .tables import axis, number
from .titles import FACTS, title

if TYPE_CHECKING:
    import pandas as pd

INK, FAINT, RED, GREY, CMAP = "#20262e", "#b8bfc8", "#c0392b", "#59636e", "viridis_r"
LOG_ABOVE = 4.0  # a perplexity axis that spans more than this ratio is logarithmic
CUT_ABOVE = 4.0  # and a dominated trial this many times worse than the front's worst is drawn at the edge
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
}


def plot_front(df: pd.DataFrame, path: Path, **rules: Any) -> Path:
    """Draw the points of one study into a PNG; returns its path. Raises `ResultsError` for rows of several judges."""
    every, best, resident = measured(df), front(df, **rules), reference(df)
    x, y, color = _axes(list(objectives_of(df)))
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(9, 6), dpi=160, layout="constrained")
        right = _x_axis(ax, x, every, best, resident)
        _dominated(ax, every.drop(best.index), x, y, right)
        outline = _staircase(ax, best, x, y)
        dots = _members(ax, best, x, y, color)
        if color:
            bar: Any = fig.colorbar(dots, ax=ax, pad=0.015, aspect=32)
            bar.set_label(f"{axis(color)}, of the front")
            bar.outline.set_visible(False)
        ax.set_ylabel(axis(y))
        if METRICS[y] == "maximize":
            ax.set_ylim(0, 1.15 * float(np.max([*every[y], *best[f"{y}_high"], *resident[y]])))
        _titles(ax, df, best)
        named = _named(ax, best, knee(df, **rules), resident, x, y, color)
        fig.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=9)
        fig.draw_without_rendering()  # fixes the layout, so that labels can be put where there is room
        fig.set_layout_engine("none")
        drawn = np.concatenate([every[[x, y]], resident[[x, y]].dropna()]).astype(float)
        _label(ax, named, ax.transData.transform(drawn), ax.transData.transform(outline), x, y)
        _save(fig, path)
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
                 label="sentinel")  # fmt: skip
        top.plot([], [], color=RED, alpha=0.3, linewidth=6, label="suspect")
        top.set_ylim(bottom=0)
        top.set_ylabel("decode_tok_s")
        top.legend(loc="lower right", frameon=False, fontsize=8, ncols=3)
        top.set_title("The night", loc="left", fontsize=12, fontweight="bold")
        for i, kind in enumerate(kinds):
            of = rows["status"] == kind
            color = INK if kind == "ok" else FAINT if kind in (*NOT_RUN, "stopped") else RED
            low.scatter(hours[of], np.full(of.sum(), i), s=12, marker="|", color=color)
        low.set_yticks(range(len(kinds)), [f"{k} ({(rows['status'] == k).sum()})" for k in kinds])
        low.set_ylim(-0.6, len(kinds) - 0.4)
        low.set_xlabel("hours since the first run")
        _save(fig, path)
    return path


def _save(fig: Any, path: Path) -> None:
    """Whole or not at all: a reader may look at any moment."""
    tmp = path.with_name(f".{path.name}.tmp")
    fig.savefig(tmp, format="png")
    plt.close(fig)
    tmp.replace(path)


def _axes(objectives: list[str]) -> tuple[str, str, str | None]:
    """Objectives for x, y and colour: a speed upwards, quality sideways if it is one of them."""
    y = next((name for name in objectives if name in SPEEDS), objectives[0])
    rest = sorted((name for name in objectives if name != y), key=lambda name: name not in ("perplexity", "kl"))
    return rest[0], y, rest[1] if len(rest) > 1 else None


def _members(ax: Axes, best: pd.DataFrame, x: str, y: str, color: str | None) -> Any:
    """The front's points with their intervals; filled if confirmed. Returns the mappable of the colours."""
    bars = [best[y] - best[f"{y}_low"], best[f"{y}_high"] - best[y]]
    sideways = [best[x] - best[f"{x}_low"], best[f"{x}_high"] - best[x]] if x in SPEEDS else None
    ax.errorbar(best[x], best[y], bars, sideways, fmt="none", ecolor=GREY, elinewidth=0.8, capsize=2, alpha=0.5, zorder=3)
    scale = plt.Normalize(best[color].min(), best[color].max()) if color else plt.Normalize(0, 1)
    dots: Any = plt.cm.ScalarMappable(scale, CMAP)
    shades = dots.to_rgba(best[color] if color else np.full(len(best), 0.6))
    sure = best["confirmed"].to_numpy(bool)
    style: Any = {"s": 72, "zorder": 4}
    if sure.any():
        ax.scatter(best[x][sure], best[y][sure], color=shades[sure], edgecolors=INK, linewidths=0.8, label="front", **style)
    if not sure.all():
        ax.scatter(best[x][~sure], best[y][~sure], facecolors="white", edgecolors=shades[~sure], linewidths=2.2,
                   label="front, unconfirmed", **style)  # fmt: skip
    return dots


def _titles(ax: Axes, df: pd.DataFrame, best: pd.DataFrame) -> None:
    drift = df["drift"].dropna() if "drift" in df else df["ssd_gbps"][:0]
    drifted = f", sentinel at {drift.min():.0%} to {drift.max():.0%} of itself" if len(drift) else ""
    trials, runs = df["trial"].nunique(), len(df)
    counted = f"{trials} trials" + (f" in {runs} runs" if runs > trials else "")
    sure = int(best["confirmed"].sum())
    what = title({name: df[name] for name in FACTS})
    ax.set_title(f"{df['study'].iloc[0]}: {what}", loc="left", fontsize=12, fontweight="bold", pad=22)
    said = f"{counted}, {len(best)} on the front, {sure} confirmed{drifted}"
    ax.annotate(said, (0, 1), (0, 8), "axes fraction", textcoords="offset points", fontsize=9, color=GREY)


Named = tuple["pd.Series", str, str]


def _named(
    ax: Axes, best: pd.DataFrame, marked: int | None, resident: pd.DataFrame, x: str, y: str, color: str | None
) -> list[Named]:
    """Draw the marks of knee and reference; returns (point, text, colour) of their labels."""
    named = list[Named]()
    say = lambda p: ", ".join(f"{number(p[n])} {SHORT[n]}" for n in (y, color or x))  # noqa: E731
    if marked is not None:
        point = best.loc[marked]
        ax.scatter([point[x]], [point[y]], s=240, facecolors="none", edgecolors=INK, linewidths=1.6, zorder=6, label="knee")
        named.append((point, f"knee: trial {marked}\n{say(point)}", INK))
    for _, point in resident[resident[[x, y]].notna().all(axis=1)].iterrows():
        ax.scatter([point[x]], [point[y]], marker="D", s=64, color="white", edgecolors=RED, linewidths=1.8, zorder=5,
                   label="reference (everything resident)")  # fmt: skip
        named.append((point, f"reference\n{say(point)}", RED))
    return named


def _x_axis(ax: Axes, x: str, every: pd.DataFrame, best: pd.DataFrame, resident: pd.DataFrame) -> float:
    """Set up the x axis; returns its right end, where much worse dominated points are drawn, lest they squash the rest."""
    shown = np.concatenate([best[x], resident[x].dropna()]).astype(float)
    low, edge = float(min(every[x].min(), shown.min())), float(shown.max()) * CUT_ABOVE
    high = float(max(every[x][every[x] <= edge].max(), shown.max()))
    if low > 0 and high / low > LOG_ABOVE:
        ax.set_xscale("log")
        pad = (high / low) ** 0.05
        left, right = low / pad, high * pad
        plain = FuncFormatter(lambda v, _: f"{v:g}")
        ax.xaxis.set_major_formatter(plain)
        ax.xaxis.set_minor_formatter(NullFormatter() if high / low > 30 else plain)
    else:
        pad = 0.06 * (high - low) or 0.05 * low or 1.0
        left, right = low - pad, high + pad
        ax.xaxis.set_major_locator(MaxNLocator(8))
    ax.set_xlim(left, right)
    ax.set_xlabel(f"{axis(x)}{'   (▸ at the edge: beyond it)' if (every[x] > edge).any() else ''}")
    return right


def _dominated(ax: Axes, others: pd.DataFrame, x: str, y: str, right: float) -> None:
    style: Any = {"color": FAINT, "alpha": 0.6, "linewidths": 0}
    inside, beyond = others[others[x] <= right], others[others[x] > right]
    ax.scatter(inside[x], inside[y], s=26, label="dominated or undecided", **style)
    ax.scatter([right] * len(beyond), beyond[y], s=40, marker=">", clip_on=False, **style)


def _staircase(ax: Axes, best: pd.DataFrame, x: str, y: str) -> np.ndarray:
    """The best y to be had at each x or better, whatever the rest: the front's outline. Returns its corners."""
    points = best.sort_values(x, ascending=METRICS[x] == "minimize")
    reached = points[y].cummax() if METRICS[y] == "maximize" else points[y].cummin()
    corners = np.column_stack([points[x].repeat(2)[1:], reached.repeat(2)[:-1]])
    ax.plot(*corners.T, color=INK, linewidth=1, alpha=0.35, zorder=3)
    return corners


def _label(ax: Axes, named: list[Named], points: np.ndarray, line: np.ndarray, x_name: str, y_name: str) -> None:
    """Write each text beside its row's point, where it covers the fewest `points`, no other label and little of `line`."""
    line = np.concatenate([np.linspace(a, b, 40) for a, b in itertools.pairwise(line)]) if len(line) > 1 else line
    frame, taken = ax.get_window_extent(), list[Bbox]()
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for row, text, color in named:
        at = row[x_name], row[y_name]
        note: Any = ax.annotate(text, at, (0, 0), textcoords="offset points", fontsize=9, color=color, bbox=box, zorder=7)
        costs = []
        for distance, angle in itertools.product((20, 36, 56, 80), range(0, 360, 30)):
            _place(note, distance, angle)
            b = note.get_window_extent().padded(8)
            covered = sum(b.contains(x, y) for x, y in points)
            clashes = sum(b.overlaps(t) for t in taken) + (not frame.contains(*b.min)) + (not frame.contains(*b.max))
            crossed = sum(b.contains(x, y) for x, y in line)
            costs.append((10 * covered + 100 * clashes + crossed + distance / 10, distance, angle))
        _place(note, *min(costs)[1:])
        taken.append(note.get_window_extent())


def _place(note: Any, distance: float, angle: float) -> None:
    x, y = distance * np.cos(np.radians(angle)), distance * np.sin(np.radians(angle))
    note.set_position((x, y))
    note.set_ha("left" if x > 5 else "right" if x < -5 else "center")
    note.set_va("bottom" if y > 5 else "top" if y < -5 else "center")
