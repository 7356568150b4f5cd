"""Hypervolume: the volume that a front dominates up to a reference point, and each origin's share of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from harness import ResultsError
from harness.results.metrics import METRICS, objectives_of
from harness.results.rows import shared_texts

from .pareto import Rows, analysed, front, losses, signs

if TYPE_CHECKING:
    import pandas as pd

CHOOSERS = ("anchor", "sampler", "random", "proposer")  # origins that propose settings


def contributions(rows: Rows, **rules: Any) -> pd.DataFrame:
    """The contribution of each origin: index origin, columns `trials`, `on_front` and `lost`.

    `lost` is the share of the front's hypervolume that would be lost without the origin's trials; NaN if it has no volume.
    """
    found = analysed(rows, **rules)
    best, every, objectives = front(found), found.measured, list(found.objectives)
    chosen = found.df.sort_values(["trial", "run"]).drop_duplicates("trial")["origin"]
    counts = chosen[chosen.isin(CHOOSERS)].value_counts().reindex(CHOOSERS).dropna().rename("trials").to_frame()
    if every.empty:
        return counts.assign(on_front=0, lost=np.nan)
    values, corner = losses(best, objectives), losses(every, objectives).max(0)
    corner = corner + 0.1 * np.abs(corner)
    whole = volume(values, corner) or np.nan
    mine = {origin: (best["origin"] == origin).to_numpy(bool) for origin in counts.index}
    return counts.assign(
        on_front=[int(mine[origin].sum()) for origin in counts.index],
        lost=[(whole - volume(values[~mine[origin]], corner)) / whole for origin in counts.index],
    )


def reference_point(*frames: pd.DataFrame) -> tuple[float, ...]:
    """A reference point for several studies: a tenth worse than the worst of all their fronts, by objective."""
    shared_texts(*frames)
    objectives = shared_objectives(*frames)
    fronts = [front(df) for df in frames]
    return shared_corner([best for best in fronts if len(best)], objectives)


def shared_corner(fronts: Sequence[pd.DataFrame], objectives: Sequence[str]) -> tuple[float, ...]:
    """A tenth worse than the worst of all fronts, by objective. No front may be empty."""
    worst = np.max([losses(best, objectives).max(0) for best in fronts], axis=0)
    return tuple(
        float(-w / 1.1 if METRICS[name] == "maximize" else w * 1.1) for name, w in zip(objectives, worst, strict=True)
    )


def shared_objectives(*frames: pd.DataFrame) -> list[str]:
    """The objectives of all frames, in order. Raises `ResultsError` if they differ."""
    sets = {",".join(objectives_of(df)) for df in frames}
    if len(sets) > 1:
        raise ResultsError(f"rows with different objectives ({'; '.join(sorted(sets))}) are not comparable; keep one set")
    return sets.pop().split(",")


def hypervolume(df: pd.DataFrame, reference: Sequence[float]) -> float:
    """The volume that the front dominates up to `reference`, one value for each objective, in the product of their units.

    Members beyond the reference point do not count.
    """
    objectives = list(objectives_of(df))
    return volume(losses(front(df), objectives), np.array(reference, float) * signs(objectives))


def volume(points: np.ndarray, corner: np.ndarray) -> float:
    """The exact volume between losses (points, objectives) and a corner (objectives).

    It slices along the last objective: between two neighbouring heights the cross-section is constant.
    """
    points = points[(points < corner).all(1)]
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    points = points[points[:, -1].argsort()]
    heights = np.diff(np.append(points[:, -1], corner[-1]))
    if len(corner) == 2:
        return float((heights * (corner[0] - np.minimum.accumulate(points[:, 0]))).sum())
    return float(sum(volume(points[: i + 1, :-1], corner[:-1]) * h for i, h in enumerate(heights) if h > 0))
