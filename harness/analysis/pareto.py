"""The front: which points no other beats, which of them are confirmed; its knee, its hypervolume, the best under a budget.

Every function takes rows as `read_trials` gives them, of a study with any two or three objectives, and puts each trial's
runs together (`harness.analysis.estimates`). The reference (everything resident) is what the front is compared with,
not a member;
infeasible points and those whose runs are all suspect are left out. Rows of different judges are refused.

Two notions of being beaten, for speed is noisy:

- By estimates: another point is no worse in all objectives and better in one; memory that differs by less than its noise
  counts as equal.
- In doubt: the probability, from what is believed of the true speeds (`harness.numerics.posterior`), that some other
point is truly no
  worse in all and faster by more than `within`. A member is confirmed when it has `runs` fresh runs and its doubt is at
  most `error`.

`standings` is the one definition of the front, for reports, plots, journal, rounds and proposers alike. A point
that another beats, by belief or by estimates, is `dominated`. Of the others, once any was measured afresh, the least
doubtful ones are the `front` as long as their mean doubt, the expected share of false members, is at most `error`; the rest
are `undecided` between near rivals. A member that is not confirmed is marked: most have no near rival and only lack fresh
runs. Where all runs are suspect, the front is made of their points, each marked `suspect`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import Knobs
from harness import ResultsError
from harness.numerics.posterior import believed, coded
from harness.results.metrics import METRICS, SPEEDS, objectives_of
from harness.results.rows import shared_texts

from .estimates import points

if TYPE_CHECKING:
    import pandas as pd


CHOOSERS = ("anchor", "sampler", "random", "proposer")  # origins that choose settings
RUNS, WITHIN, ERROR = 2, 0.05, 0.03  # of a confirmed point, unless the study says otherwise
EQUAL = 3.0  # standard errors within which memory counts as equal: the least of many like readings is far off
LEAST = 1e-9  # a KL divergence or a count of bytes below this is as good as this


def measured(df: pd.DataFrame) -> pd.DataFrame:
    """The streamed, feasible points that have figures for all objectives: the trusted ones, or where there is none, all."""
    shared_texts(df)
    every = points(df)
    whole = every[list(objectives_of(df))].notna().all(axis=1)
    some = every[whole & every["feasible"] & (every["origin"] != "reference")]
    return some[~some["suspect"]] if not some["suspect"].all() else some


def reference(df: pd.DataFrame) -> pd.DataFrame:
    """The reference as a point: one line, or none if it was not measured."""
    every = points(df)
    return every[every["origin"] == "reference"]


def losses(some: pd.DataFrame, objectives: Sequence[str]) -> np.ndarray:
    """(points, objectives): each so that less is better."""
    return some[list(objectives)].to_numpy(float) * _signs(objectives)


def _signs(objectives: Sequence[str]) -> np.ndarray:
    return np.array([-1.0 if METRICS[name] == "maximize" else 1.0 for name in objectives])


def standings(df: pd.DataFrame, *, runs: int = RUNS, within: float = WITHIN, error: float = ERROR) -> pd.DataFrame:
    """All measured points, best in the first objective first, with `standing` (front, undecided or dominated), `doubt` (NaN
    if dominated) and `confirmed`."""
    every, objectives = measured(df), objectives_of(df)
    duels = Duels(every, list(objectives), within)
    members = duels.members()
    doubt, standing = np.full(len(every), np.nan), np.full(len(every), "dominated", object)
    doubt[members], standing[members] = duels.doubt(members), "front"
    if every["fresh_runs"].iloc[members].any():
        order = members[np.argsort(doubt[members], kind="stable")]
        mean = doubt[order].cumsum() / np.arange(1, len(order) + 1)
        standing[order[max(1, (mean <= error).sum()) :]] = "undecided"
    out = every.assign(standing=standing, doubt=doubt)
    out["confirmed"] = (out["fresh_runs"] >= runs) & (out["doubt"] <= error)
    first = next(iter(objectives))
    return out.sort_values(first, ascending=objectives[first] == "minimize", kind="stable")


def front(df: pd.DataFrame, **rules: Any) -> pd.DataFrame:
    """The points of `standings(df, **rules)` that are on the front, best in the first objective first."""
    every = standings(df, **rules)
    return every[every["standing"] == "front"]


def nondominated(values: np.ndarray) -> np.ndarray:
    """Which of (points, objectives) losses no other equals in all and beats in one: bool (points)."""
    kept = np.zeros(len(values), bool)
    for i in np.lexsort(values.T[::-1]):  # what beats a point comes before it
        others = values[kept]
        kept[i] = not ((others <= values[i]).all(1) & (others < values[i]).any(1)).any()
    return kept


class Duels:
    """Every point against every other, by position in `some`: who beats whom, and with what probability. `drawn`:
    logarithms of the true speeds, less is better, (draws, points, speeds among the objectives)."""

    def __init__(self, some: pd.DataFrame, objectives: Sequence[str], within: float) -> None:
        self._logs = np.log(np.maximum(some[list(objectives)].to_numpy(float), LEAST)) * _signs(objectives)
        self.se = some[[f"{name}_rel_se" for name in objectives]].to_numpy(float)
        self.fast = np.array([name in SPEEDS for name in objectives])
        self._variance = np.where(self.fast, 0.0, self.se**2)
        self._margin = float(np.log1p(within))
        knobs = (*Knobs.names(), "removed_knobs")
        known = np.column_stack([self._logs[:, ~self.fast], *(coded(some[name]) for name in knobs)])
        single = some["runs"].to_numpy() < 2
        beliefs = [believed(self._logs[:, k], self.se[:, k], single, known) for k in np.flatnonzero(self.fast)]
        self.drawn = np.stack([drawn for _, drawn in beliefs], axis=2) if beliefs else np.empty((1, len(some), 0))
        self._believed = self._logs.copy()
        for k, (mean, _) in zip(np.flatnonzero(self.fast), beliefs, strict=True):
            self._believed[:, k] = mean
        self.spread = self.drawn.std(axis=0)

    def members(self, among: np.ndarray | None = None) -> np.ndarray:
        """Positions of the points that none beats by belief, nor, among these, by estimates; of the positions `among`, if
        given."""
        believed = self._unbeaten(self._believed, np.arange(len(self._logs)) if among is None else among)
        return np.sort(self._unbeaten(self._logs, believed))

    def plausible(self) -> np.ndarray:
        """Positions of the members, and of the points that no member is believed to beat by as much as `within`."""
        members = self.members()
        near = [not self._far(i, members) for i in range(len(self._logs))]
        return np.flatnonzero(near)

    def doubt(self, which: Iterable[int]) -> np.ndarray:
        """For each of the points: the probability that some other is truly better by more than `within`."""
        return np.array([self.wins(i)[1].any(axis=1).mean() for i in which])

    def wins(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Rivals of point i (positions), and (draws, rivals): in which draws each is truly better by more than `within`."""
        gap = (self._believed - self._believed[i])[:, self.fast] - 4 * np.hypot(self.spread, self.spread[i])
        rivals = np.flatnonzero(self._no_worse(i) & (gap < 0).all(axis=1))
        rivals = rivals[rivals != i]
        ahead = self.drawn[:, [i]] - self.drawn[:, rivals]
        return rivals, np.logical_and((ahead >= 0).all(axis=2), (ahead > self._margin).any(axis=2))

    def _no_worse(self, i: int, which: Any = slice(None)) -> np.ndarray:
        """(points): which are no worse than point i in all that is no speed."""
        return (self._logs[which] <= self._logs[i] + self._equal(i, which))[:, ~self.fast].all(axis=1)

    def _far(self, i: int, members: np.ndarray) -> bool:
        ahead = (self._believed[i] - self._believed[members])[:, self.fast]
        return bool((self._no_worse(i, members) & (ahead >= 0).all(axis=1) & (ahead > 2 * self._margin).any(axis=1)).any())

    def _unbeaten(self, logs: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The fastest first, each kept unless one kept before beats it: so whatever is beaten is so by a member."""
        order = which[np.lexsort((logs[which][:, ~self.fast].sum(axis=1), logs[which][:, self.fast].sum(axis=1)))]
        kept = np.empty(len(order), int)
        n = 0
        for i in order:
            equal, others = self._equal(i, kept[:n]), logs[kept[:n]] - logs[i]
            if not ((others <= equal).all(axis=1) & (others < -equal).any(axis=1)).any():
                kept[n], n = i, n + 1
        return kept[:n]

    def _equal(self, i: int, which: Any = slice(None)) -> np.ndarray:
        """(points, objectives): differences from point i that count as none; next to zero for speeds."""
        return LEAST + EQUAL * np.sqrt(self._variance[which] + self._variance[i])


def knee(df: pd.DataFrame, **rules: Any) -> int | None:
    """Trial number of the knee of `front(df, **rules)`, a mark for plots: the member nearest to the best of each objective.
    None without a front.

    The distance is Euclidean in the logarithms of the objectives, so that equal ratios weigh the same: 3 % of memory never
    outweighs half the speed (compromise solution, Yu and Zeleny, 1973). Differences within the noise of memory count as
    none.
    """
    best, objectives = front(df, **rules), list(objectives_of(df))
    if best.empty:
        return None
    logs = np.log(np.maximum(np.abs(losses(best, objectives)), LEAST)) * _signs(objectives)
    noise = EQUAL * best[[f"{name}_rel_se" for name in objectives]].fillna(0).to_numpy(float)
    apart = logs - logs.min(0)
    apart[(apart <= noise) & np.array([name not in SPEEDS for name in objectives])] = 0
    return int(best.index[(apart**2).sum(1).argmin()])


def contributions(df: pd.DataFrame, **rules: Any) -> pd.DataFrame:
    """What each origin that chose settings brought: index origin, columns `trials`, `on_front` and `lost`, the share of the
    front's hypervolume that would be lost without its points (NaN where the front has no volume)."""
    best, every, objectives = front(df, **rules), measured(df), list(objectives_of(df))
    chosen = df.sort_values(["trial", "run"]).drop_duplicates("trial")["origin"]
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
    """In the order of the objectives, a tenth worse than the worst of all the frames' fronts: a shared corner."""
    shared_texts(*frames)
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
    objectives = list(objectives_of(df))
    return volume(losses(front(df), objectives), np.array(reference, float) * _signs(objectives))


def volume(points: np.ndarray, corner: np.ndarray) -> float:
    """Volume between losses (points, objectives) and a corner; exact, by slicing along the last objective: between two
    neighbours' heights the cross-section is constant."""
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
