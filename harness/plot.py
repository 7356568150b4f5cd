"""The front as a picture: speed against perplexity, memory as colour, dominated trials faint, knee and reference named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from .front import front, knee, measured

if TYPE_CHECKING:
    import pandas as pd

INK, FAINT, CMAP = "#20262e", "#b8bfc8", "viridis_r"
LOG_ABOVE = 4.0  # a perplexity axis that spans more than this ratio is logarithmic
CUT_ABOVE = 4.0  # and a dominated trial this many times worse than the front's worst is drawn at the edge


def plot_front(df: pd.DataFrame, path: Path) -> Path:
    """Draw the rows of one study into a PNG; returns its path. Raises `ResultsError` for rows of several judges."""
    rows, best, marked = measured(df), front(df), knee(df)
    reference = df[(df["origin"] == "reference") & (df["status"] == "ok")]
    with plt.rc_context(_STYLE):
        fig, ax = plt.subplots(figsize=(9, 5.8), dpi=160, layout="constrained")
        right = _perplexity_axis(ax, rows, best, reference)
        beaten = rows.drop(best.index)
        _points(ax, beaten, right, s=26, color=FAINT, alpha=0.55, linewidths=0, label="dominated")
        _staircase(ax, best)
        memory = best["peak_memory_gb"]
        drawn = ax.scatter(
            best["perplexity"], best["decode_tok_s"], c=memory, cmap=CMAP, s=72, edgecolors=INK, linewidths=0.8, zorder=4,
            label="front",
        )  # fmt: skip
        bar = fig.colorbar(drawn, ax=ax, pad=0.015, aspect=32)
        bar.set_label("peak_memory_gb")
        bar.outline.set_visible(False)  # type: ignore[operator]
        if len(reference):
            ax.scatter(reference["perplexity"], reference["decode_tok_s"], marker="D", s=70, color="white",
                       edgecolors="#c0392b", linewidths=1.8, zorder=5, label="reference")  # fmt: skip
            _name(ax, reference.iloc[0], f"reference, all resident\n{reference.iloc[0]['peak_memory_gb']:.3g} GB", "#c0392b")
        if marked is not None:
            row = best.loc[marked]
            ax.scatter([row["perplexity"]], [row["decode_tok_s"]], s=260, facecolors="none", edgecolors=INK, linewidths=1.6,
                       zorder=6, label="knee")  # fmt: skip
            _name(
                ax, row, f"knee, trial {row['trial']}\n{row['decode_tok_s']:.3g} tok/s, {row['peak_memory_gb']:.3g} GB", INK
            )
        ax.set_ylabel("decode_tok_s   (more is better)")
        ax.set_ylim(
            0, 1.12 * float(max(rows["decode_tok_s"].max(), reference["decode_tok_s"].max() if len(reference) else 0))
        )
        first = df.iloc[0]
        ax.set_title(f"{first['study']}: {first['model']} on {first['device']}", loc="left", fontsize=13, fontweight="bold")
        ssd = df["ssd_gbps"].dropna().unique()
        held = f", reads held to {', '.join(f'{v:g}' for v in ssd)} GB/s" if len(ssd) else ""
        ax.set_title(f"{len(df)} trials, {len(best)} on the front{held}", loc="right", fontsize=9, color="#59636e")
        ax.legend(loc="lower right", frameon=False, fontsize=9)
        tmp = path.with_name(f".{path.name}.tmp")
        fig.savefig(tmp, format="png")
        plt.close(fig)
    tmp.replace(path)
    return path


_STYLE: dict[str, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#59636e",
    "axes.labelcolor": INK,
    "text.color": INK,
    "axes.grid": True,
    "grid.color": "#eceff2",
    "axes.axisbelow": True,
}


def _perplexity_axis(ax: Axes, rows: pd.DataFrame, best: pd.DataFrame, reference: pd.DataFrame) -> float:
    """Set up the x axis; returns its right end. Worse dominated trials are drawn there, so that they do not squash the rest."""
    shown = np.concatenate([best["perplexity"], reference["perplexity"]])
    low, edge = float(min(rows["perplexity"].min(), shown.min())), float(shown.max()) * CUT_ABOVE
    inside = rows["perplexity"][rows["perplexity"] <= edge]
    high = float(max(inside.max(), shown.max()))
    if high / low > LOG_ABOVE:
        ax.set_xscale("log")
        pad = (high / low) ** 0.05
        left, right = low / pad, high * pad
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter() if high / low > 30 else FuncFormatter(lambda x, _: f"{x:g}"))
    else:
        pad = 0.06 * (high - low) or 0.05 * low
        left, right = low - pad, high + pad
        ax.xaxis.set_major_locator(MaxNLocator(8))
    ax.set_xlim(left, right)
    ax.set_xlabel(
        "perplexity   (less is better)" + ("   ▸ at the edge: beyond it" if (rows["perplexity"] > edge).any() else "")
    )
    return right


def _points(ax: Axes, rows: pd.DataFrame, right: float, **style: Any) -> None:
    inside = rows[rows["perplexity"] <= right]
    beyond = rows[rows["perplexity"] > right]
    ax.scatter(inside["perplexity"], inside["decode_tok_s"], **style)
    if len(beyond):
        style.pop("label")
        ax.scatter([right] * len(beyond), beyond["decode_tok_s"], marker=">", clip_on=False, **style)


def _staircase(ax: Axes, best: pd.DataFrame) -> None:
    """The best speed to be had at each perplexity, whatever the memory: the front's outline in this plane."""
    rows = best.sort_values("perplexity")
    ax.step(rows["perplexity"], rows["decode_tok_s"].cummax(), where="post", color=INK, linewidth=1, alpha=0.35, zorder=3)


def _name(ax: Axes, row: pd.Series, text: str, color: str) -> None:
    """A label on whichever side of the point has room."""
    x, y = ax.transAxes.inverted().transform(ax.transData.transform((row["perplexity"], row["decode_tok_s"])))
    ax.annotate(
        text, (row["perplexity"], row["decode_tok_s"]), xytext=(14 if x < 0.6 else -14, 12), textcoords="offset points",
        ha="left" if x < 0.6 else "right", va="bottom", fontsize=9, color=color, zorder=7,
        bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
    )  # fmt: skip
