"""Figures: colours and style of all plots, and saving one as PNG and SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from engine.system import atomic

INK, BLUE, FAINT, RED, GREY = "#20262e", "#1f5a96", "#9aa3ad", "#c0392b", "#59636e"
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
    "svg.hashsalt": "headrace",  # without it, equal plots differ in their ids
}


def save(figure: Figure, path: Path) -> None:
    """Save `path` (PNG) and an SVG beside it, and close the figure.

    Each file is replaced atomically, because a reader may open it at any time. The SVG has no date, so equal rows give equal
    files.
    """
    for kind in ("png", "svg"):
        with atomic.replacing(path.with_suffix(f".{kind}"), durable=False) as partial:
            figure.savefig(partial, format=kind, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
