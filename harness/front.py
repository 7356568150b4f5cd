"""The front: which points no other beats, which of them are confirmed; its knee, its hypervolume, the best under a budget.

Every function takes rows as `read_trials` gives them, of a study with any two or three objectives, and puts each trial's
runs together (`harness.points`). The reference (everything resident) is what the front is compared with, not a member;
infeasible points and those whose runs are all suspect are left out. Rows of different judges are refused.

Two notions of being beaten, for speed is noisy:

- By estimates: another point is no worse in all objectives and better in one; memory that differs by less than its noise
  counts as equal.
- In doubt: the probability, from the estimates (`shrunk` towards what like points have) and the pooled noise, that some
  other point is truly no worse in all and faster by more than `within`. A member is
  confirmed when it has `runs` fresh runs and its doubt is at most `error`.

The front holds the points that none beats by estimates: of these, once any was measured afresh, the least doubtful ones as
long as their mean doubt, the share of false members to be expected, is at most `error`. The rest are undecided between near
rivals (`candidates`): it is better to name fewer. A member that is not confirmed is marked, for most have no near rival and
only lack fresh runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import ResultsError
from .columns import METRICS, objectives_of
from .points import SPEEDS, points
from .rows import one_judge

if TYPE_CHECKING:
    import pandas as pd


RUNS, WITHIN, ERROR = 2, 0.05, 0.05  # of a confirmed point, unless the study says otherwise
EQUAL = 2.0  # standard errors within which memory counts as equal
DRAWS = 1000
LEAST_SCATTER = 0.02  # of true speeds about what like points have
LEAST = 1e-9  # a KL divergence or a count of bytes below this is as good as this


def measured(df: pd.DataFrame) -> pd.DataFrame:
    """The streamed, feasible, trusted points that have figures for all objectives."""
    one_judge(df)
    every = points(df)
    whole = every[list(objectives_of(df))].notna().all(axis=1)
    return every[whole & every["feasible"] & ~every["suspect"] & (every["origin"] != "reference")]


def reference(df: pd.DataFrame) -> pd.DataFrame:
    """The reference as a point: one line, or none if it was not measured."""
    every = points(df)
    return every[every["origin"] == "reference"]


def losses(some: pd.DataFrame, objectives: Sequence[str]) -> np.ndarray:
    """(points, objectives): each so that less is better."""
    signs = [-1.0 if METRICS[name] == "maximize" else 1.0 for name in objectives]
    return some[list(objectives)].to_numpy(float) * signs


def front(df: pd.DataFrame, *, runs: int = RUNS, within: float = WITHIN, error: float = ERROR) -> pd.DataFrame:
    """The points of the front, best in the first objective first, with `doubt` and `confirmed`."""
    some = candidates(df, runs=runs, within=within, error=error)
    return some[some["reported"]].drop(columns="reported")


def candidates(df: pd.DataFrame, *, runs: int = RUNS, within: float = WITHIN, error: float = ERROR) -> pd.DataFrame:
    """The points that none beats by estimates, with `doubt`, `confirmed` and `reported` (on the front)."""
    every, objectives = measured(df), objectives_of(df)
    duels = Duels(every, list(objectives), within)
    doubt = duels.doubt(duels.members())
    out = every.iloc[duels.members()].assign(doubt=doubt, reported=True)
    out["confirmed"] = (out["fresh_runs"] >= runs) & (out["doubt"] <= error)
    if len(out) and out["fresh_runs"].any():
        order = out["doubt"].sort_values(kind="stable")
        sure = order.index[order.expanding().mean() <= error]
        out["reported"] = out.index.isin([*sure, order.index[0]])
    first = next(iter(objectives))
    return out.sort_values(first, ascending=objectives[first] == "minimize", kind="stable")


class Duels:
    """Every point against every other, by position in `some`: who beats whom by estimates, and with what probability."""

    def __init__(self, some: pd.DataFrame, objectives: Sequence[str], within: float) -> None:
        signs = np.array([-1.0 if METRICS[name] == "maximize" else 1.0 for name in objectives])
        self._logs = np.log(np.maximum(some[list(objectives)].to_numpy(float), LEAST)) * signs
        self.se = some[[f"{name}_rel_se" for name in objectives]].to_numpy(float)
        self._fast = np.array([name in SPEEDS for name in objectives])
        self._margin = float(np.log1p(within))
        believed, spread = self._logs.copy(), self.se.copy()
        for k in np.flatnonzero(self._fast):
            believed[:, k], spread[:, k] = shrunk(self._logs[:, k], self.se[:, k], self._logs[:, ~self._fast])
        self.believed, self.spread = believed, spread
        draws = np.random.default_rng(0).standard_normal((DRAWS, *self._logs[:, self._fast].shape), dtype=np.float32)
        self._drawn = believed[:, self._fast] + draws * spread[:, self._fast]
        self.beaten = np.array([self._beaten(i) for i in range(len(some))], bool)

    def doubt(self, which: Iterable[int]) -> np.ndarray:
        """For each of the points: the probability that some other is truly better by more than `within`."""
        return np.array([self.wins(i)[1].any(axis=1).mean() for i in which])

    def members(self) -> np.ndarray:
        """Positions of the points that none beats by estimates."""
        return np.flatnonzero(~self.beaten)

    def wins(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Rivals of point i (positions), and (draws, rivals): in which draws each is truly better by more than `within`."""
        no_worse = (self._logs <= self._logs[i] + self._equal(i))[:, ~self._fast].all(axis=1)
        gap = (self.believed - self.believed[i])[:, self._fast] - 4 * np.hypot(self.spread, self.spread[i])[:, self._fast]
        rivals = np.flatnonzero(no_worse & (gap < 0).all(axis=1))
        rivals = rivals[rivals != i]
        ahead = self._drawn[:, [i]] - self._drawn[:, rivals]
        return rivals, (ahead >= 0).all(axis=2) & (ahead > self._margin).any(axis=2)

    def _beaten(self, i: int) -> bool:
        equal = self._equal(i)
        others = self._logs - self._logs[i]
        return bool(((others <= equal).all(axis=1) & (others < -equal).any(axis=1)).any())

    def _equal(self, i: int) -> np.ndarray:
        """(points, objectives): differences from point i that count as none; zero for speeds."""
        return np.where(self._fast, 0.0, EQUAL * np.hypot(self.se, self.se[i]))


def shrunk(values: np.ndarray, se: np.ndarray, like: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of a speed drawn towards what points of like memory and quality have; mean and spread of the belief.

    The first run of the fastest points was lucky more often than not. How much so depends on how far apart points lie
    that are alike in all else: where that is less than the noise, a single fast run says little. So (Fay and Herriot, 1979):
    a quadratic in the other objectives' logarithms, the scatter of true speeds about it found from the residuals, and each
    point between its own estimate and the quadratic by the weight of the two variances.
    """
    if not len(values):
        return values, se
    features = _quadratic(like)
    if len(values) < 3 * features.shape[1]:
        return values, se
    scatter = float(np.var(values))
    for _ in range(5):
        w = 1 / np.sqrt(scatter + se**2)
        fit = features @ np.linalg.lstsq(features * w[:, None], values * w, rcond=None)[0]
        residuals = values - fit
        total = (1.4826 * np.median(np.abs(residuals))) ** 2 * len(values) / (len(values) - features.shape[1])
        scatter = max(float(total - np.median(se**2)), LEAST_SCATTER**2)
    own = scatter / (scatter + se**2)
    return fit + own * residuals, np.sqrt(own) * se


def _quadratic(x: np.ndarray) -> np.ndarray:
    """(points, features): 1, and each column standardised, squared and multiplied with the others."""
    span = x.std(axis=0)
    z = ((x - x.mean(axis=0)) / np.where(span > 0, span, 1))[:, span > 0]
    products = [z[:, i] * z[:, j] for i in range(z.shape[1]) for j in range(i, z.shape[1])]
    return np.column_stack([np.ones(len(x)), z, *products])


def knee(df: pd.DataFrame, **rules: Any) -> int | None:
    """Trial number of the knee of `front(df, **rules)`: the point nearest to the ideal one. None without a front.

    Each objective (perplexity by its logarithm) is scaled over the front to 0 at its best and 1 at its worst; the ideal is
    0 in all and the distance Euclidean: the compromise solution (Yu and Zeleny, 1973). The farthest point from the plane
    through the front's extremes, the other usual definition, is an extreme itself wherever the front is not convex.
    """
    best, objectives = front(df, **rules), list(objectives_of(df))
    if best.empty:
        return None
    values = losses(best, objectives)
    if "perplexity" in objectives:
        values[:, objectives.index("perplexity")] = np.log(best["perplexity"])
    span = np.ptp(values, axis=0)
    scaled = (values - values.min(0)) / np.where(span > 0, span, 1)
    return int(best.index[(scaled**2).sum(1).argmin()])


def reference_point(*frames: pd.DataFrame) -> tuple[float, ...]:
    """In the order of the objectives, a tenth worse than the worst of all the frames' fronts: a shared corner."""
    one_judge(*frames)
    objectives = shared_objectives(*frames)
    worst = np.max([losses(front(df), objectives).max(0) for df in frames if len(front(df))], axis=0)
    return tuple(
        float(-w / 1.1 if METRICS[name] == "maximize" else w * 1.1) for name, w in zip(objectives, worst, strict=True)
    )


def shared_objectives(*frames: pd.DataFrame) -> list[str]:
    """The objectives of all frames. Raises `ResultsError` if they differ."""
    sets = {",".join(objectives_of(df)) for df in frames}
    if len(sets) > 1:
        raise ResultsError(f"rows with different objectives ({'; '.join(sorted(sets))}) cannot be compared; keep one's")
    return sets.pop().split(",")


def hypervolume(df: pd.DataFrame, reference: Sequence[float]) -> float:
    """Volume, in the product of the objectives' units, that the front dominates up to `reference`, a figure for each
    objective; points beyond it count nothing."""
    objectives = objectives_of(df)
    signs = [-1.0 if direction == "maximize" else 1.0 for direction in objectives.values()]
    return volume(losses(front(df), list(objectives)), np.array(reference, float) * signs)


def volume(points: np.ndarray, corner: np.ndarray) -> float:
    """Volume between losses (points, objectives) and a corner; exact, by slicing along the last objective: between two
    neighbours' heights the cross-section is constant."""
    points = points[(points < corner).all(1)]
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points.min())
    points = points[points[:, -1].argsort()]
    heights = np.append(points[:, -1], corner[-1])
    slices = (volume(points[: i + 1, :-1], corner[:-1]) * h for i, h in enumerate(np.diff(heights)) if h > 0)
    return float(sum(slices))


def best_under(df: pd.DataFrame, memory_gb: float, max_perplexity: float | None = None) -> pd.Series:
    """The fastest point whose process stayed within `memory_gb` (and, if given, `max_perplexity`)."""
    every = measured(df)
    some = every[every["peak_memory_gb"] <= memory_gb]
    if max_perplexity is not None:
        some = some[some["perplexity"] <= max_perplexity]
    if some.empty:
        least = every["peak_memory_gb"].min()
        raise ResultsError(
            f"no trial stays within {memory_gb:g} GB and the perplexity asked for; the least is {least:.3g} GB"
        )
    return some.loc[some["decode_tok_s"].idxmax()]
