"""The front: which trials no other trial beats, its knee, its hypervolume, and the best trial under a memory budget.

Every function takes rows as `read_trials` gives them and looks at status ok alone. The reference (everything resident) is
what the front is compared with, not a member. Rows of different judges are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from . import ResultsError
from .columns import OBJECTIVES
from .rows import one_judge

if TYPE_CHECKING:
    import pandas as pd


def measured(df: pd.DataFrame) -> pd.DataFrame:
    """The streamed rows that have figures."""
    one_judge(df)
    return df[(df["status"] == "ok") & (df["origin"] != "reference")]


def losses(df: pd.DataFrame) -> np.ndarray:
    """(rows, 3): speed, memory and perplexity, each so that less is better."""
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in OBJECTIVES.values()]
    return df[list(OBJECTIVES)].to_numpy(float) * signs


def front(df: pd.DataFrame) -> pd.DataFrame:
    """The rows that no other dominates (none is as good in all objectives and better in one), fastest first."""
    rows = measured(df)
    values = losses(rows)
    beaten = [bool(((values <= v).all(1) & (values < v).any(1)).any()) for v in values]
    return rows[~np.array(beaten, bool)].sort_values("decode_tok_s", ascending=False, kind="stable")


def knee(df: pd.DataFrame) -> int | None:
    """Index label of the front's knee: the row nearest to the ideal point, in three objectives. None without a front.

    Each objective (perplexity by its logarithm) is scaled over the front to 0 at its best and 1 at its worst; the ideal is
    (0, 0, 0) and the distance Euclidean: the compromise solution (Yu and Zeleny, 1973). The farthest point from the plane
    through the front's extremes, the other usual definition, is an extreme itself wherever the front is not convex.
    """
    rows = front(df)
    if rows.empty:
        return None
    values = losses(rows)
    values[:, 2] = np.log(values[:, 2])
    span = np.ptp(values, axis=0)
    scaled = (values - values.min(0)) / np.where(span > 0, span, 1)
    return rows.index[int((scaled**2).sum(1).argmin())]


def reference_point(*frames: pd.DataFrame) -> tuple[float, float, float]:
    """(tokens/s, GB, perplexity) a tenth worse than the worst of all the frames' fronts: a shared corner to measure from."""
    one_judge(*frames)
    worst = np.max([losses(front(df)).max(0) for df in frames if len(front(df))], axis=0)
    return -worst[0] / 1.1, worst[1] * 1.1, worst[2] * 1.1


def hypervolume(df: pd.DataFrame, reference: Sequence[float]) -> float:
    """Volume (tokens/s x GB x perplexity) that the front dominates up to `reference`; points beyond it count nothing."""
    corner = np.array([-reference[0], reference[1], reference[2]])
    points = losses(front(df))
    return _volume(points[(points < corner).all(1)], corner)


def _volume(points: np.ndarray, corner: np.ndarray) -> float:
    """Exact, by slicing along the last objective: between two neighbours' heights the cross-section is constant."""
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    points = points[points[:, -1].argsort()]
    heights = np.append(points[:, -1], corner[-1])
    slices = (_volume(points[: i + 1, :-1], corner[:-1]) * h for i, h in enumerate(np.diff(heights)) if h > 0)
    return float(sum(slices))


def best_under(df: pd.DataFrame, memory_gb: float, max_perplexity: float | None = None) -> pd.Series:
    """The fastest row whose process stayed within `memory_gb` (and, if given, `max_perplexity`)."""
    rows = measured(df)
    rows = rows[rows["peak_memory_gb"] <= memory_gb]
    if max_perplexity is not None:
        rows = rows[rows["perplexity"] <= max_perplexity]
    if rows.empty:
        least = measured(df)["peak_memory_gb"].min()
        raise ResultsError(
            f"no trial stays within {memory_gb:g} GB and the perplexity asked for; the least is {least:.3g} GB"
        )
    return rows.loc[rows["decode_tok_s"].idxmax()]
