"""The front as a picture: speed against perplexity, memory as colour, dominated trials faint, knee and reference named."""

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

from .front import front, knee, measured

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


def plot_front(df: pd.DataFrame, path: Path) -> Path:
    """Draw the rows of one study into a PNG; returns its path. Raises `ResultsError` for rows of several judges."""
    rows, best = measured(df), front(df)
    reference = df[(df["origin"] == "reference") & (df["status"] == "ok")]
    with plt.rc_context(STYLE):
        fig, ax = plt.subplots(figsize=(9, 6), dpi=160, layout="constrained")
        right = _perplexity_axis(ax, rows, best, reference)
        _dominated(ax, rows.drop(best.index), right)
        outline = _staircase(ax, best)
        dots = ax.scatter(best["perplexity"], best["decode_tok_s"], c=best["peak_memory_gb"], cmap=CMAP, s=72,
                          edgecolors=INK, linewidths=0.8, zorder=4, label="front")  # fmt: skip
        bar: Any = fig.colorbar(dots, ax=ax, pad=0.015, aspect=32)
        bar.set_label("peak_memory_gb of the front   (less is better)")
        bar.outline.set_visible(False)
        ax.set_ylabel("decode_tok_s   (more is better)")
        ax.set_ylim(0, 1.15 * float(np.max([*rows["decode_tok_s"], *reference["decode_tok_s"]])))
        _titles(ax, df, len(best))
        named = _named(ax, df, best, reference)
        fig.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=9)
        fig.draw_without_rendering()  # fixes the layout, so that labels can be put where there is room
        fig.set_layout_engine("none")
        drawn = np.concatenate([rows[["perplexity", "decode_tok_s"]], reference[["perplexity", "decode_tok_s"]]])
        _label(ax, named, ax.transData.transform(drawn), ax.transData.transform(outline))
        tmp = path.with_name(f".{path.name}.tmp")
        fig.savefig(tmp, format="png")
        plt.close(fig)
    tmp.replace(path)
    return path


def _titles(ax: Axes, df: pd.DataFrame, on_front: int) -> None:
    first, held = df.iloc[0], df["ssd_gbps"].dropna().unique()
    reads = f", reads held to {', '.join(f'{v:g}' for v in held)} GB/s" if len(held) else ""
    ax.set_title(f"{first['study']}: {first['model']} on {first['device']}", loc="left", fontsize=13, fontweight="bold")
    ax.set_title(f"{len(df)} trials, {on_front} on the front{reads}", loc="right", fontsize=9, color=GREY)


def _named(ax: Axes, df: pd.DataFrame, best: pd.DataFrame, reference: pd.DataFrame) -> list[tuple[pd.Series, str, str]]:
    """Draw the marks of knee and reference; returns (row, text, colour) of their labels."""
    marked, named = knee(df), []
    if marked is not None:
        row = best.loc[marked]
        ax.scatter([row["perplexity"]], [row["decode_tok_s"]], s=240, facecolors="none", edgecolors=INK, linewidths=1.6,
                   zorder=6, label="knee")  # fmt: skip
        named.append((row, f"knee: trial {row['trial']}\n{_figures(row)}", INK))
    if len(reference):
        row = reference.iloc[0]
        ax.scatter([row["perplexity"]], [row["decode_tok_s"]], marker="D", s=64, color="white", edgecolors=RED,
                   linewidths=1.8, zorder=5, label="reference (everything resident)")  # fmt: skip
        named.append((row, f"reference\n{_figures(row)}", RED))
    return named


def _figures(row: pd.Series) -> str:
    return f"{row['decode_tok_s']:.3g} tok/s, {row['peak_memory_gb']:.3g} GB"


def _perplexity_axis(ax: Axes, rows: pd.DataFrame, best: pd.DataFrame, reference: pd.DataFrame) -> float:
    """Set up the x axis; returns its right end, where much worse dominated trials are drawn, lest they squash the rest."""
    shown = np.concatenate([best["perplexity"], reference["perplexity"]])
    low, edge = float(min(rows["perplexity"].min(), shown.min())), float(shown.max()) * CUT_ABOVE
    inside = rows["perplexity"][rows["perplexity"] <= edge]
    high = float(max(inside.max(), shown.max()))
    if high / low > LOG_ABOVE:
        ax.set_xscale("log")
        pad = (high / low) ** 0.05
        left, right = low / pad, high * pad
        plain = FuncFormatter(lambda x, _: f"{x:g}")
        ax.xaxis.set_major_formatter(plain)
        ax.xaxis.set_minor_formatter(NullFormatter() if high / low > 30 else plain)
    else:
        pad = 0.06 * (high - low) or 0.05 * low
        left, right = low - pad, high + pad
        ax.xaxis.set_major_locator(MaxNLocator(8))
    ax.set_xlim(left, right)
    beyond = "   (▸ at the edge: beyond it)" if (rows["perplexity"] > edge).any() else ""
    ax.set_xlabel(f"perplexity   (less is better){beyond}")
    return right


def _dominated(ax: Axes, rows: pd.DataFrame, right: float) -> None:
    style: Any = {"color": FAINT, "alpha": 0.6, "linewidths": 0}
    inside, beyond = rows[rows["perplexity"] <= right], rows[rows["perplexity"] > right]
    ax.scatter(inside["perplexity"], inside["decode_tok_s"], s=26, label="dominated", **style)
    ax.scatter([right] * len(beyond), beyond["decode_tok_s"], s=40, marker=">", clip_on=False, **style)


def _staircase(ax: Axes, best: pd.DataFrame) -> np.ndarray:
    """The best speed to be had at each perplexity, whatever the memory: the front's outline. Returns its corners."""
    rows = best.sort_values("perplexity")
    corners = np.column_stack([rows["perplexity"].repeat(2)[1:], rows["decode_tok_s"].cummax().repeat(2)[:-1]])
    ax.plot(*corners.T, color=INK, linewidth=1, alpha=0.35, zorder=3)
    return corners


def _label(ax: Axes, named: list[tuple[pd.Series, str, str]], points: np.ndarray, line: np.ndarray) -> None:
    """Write each text beside its row's point, where it covers the fewest `points`, no other label and little of `line`."""
    line = np.concatenate([np.linspace(a, b, 40) for a, b in itertools.pairwise(line)]) if len(line) > 1 else line
    frame, taken = ax.get_window_extent(), list[Bbox]()
    box = {"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    for row, text, color in named:
        at = row["perplexity"], row["decode_tok_s"]
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
