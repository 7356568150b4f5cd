"""Pareto front: the settings that no other measured setting beats, and which of them are confirmed.

Every function takes rows as `read_trials` gives them, with any objectives, or their `Analysis`, and works on one estimate a
trial (`estimates.py`). The reference (everything resident) is compared with the front and is no member of it. Infeasible
trials, and trials with suspect runs only, are left out. Rows of different evaluation texts are refused.

Speed is noisy, so there are two notions of being beaten:

- By estimates: another trial is no worse in all objectives and better in one. Memory that differs by less than its noise
  counts as equal.
- In doubt: the probability, from the posterior of the true speeds (`harness.numerics.posterior`), that another trial is
  truly no worse in all objectives and faster by more than `within`. A member is confirmed if it has `runs` fresh runs and
  a doubt of at most `error`.

`standings` is the only definition of the front; reports, plots, journal, rounds and proposers use it. A trial that another
one beats, by posterior means or by estimates, is `dominated`. If there are fresh runs, the least doubtful of the others
are the `front`: as many as keep their mean doubt, which is the expected share of false members, at most `error`. The rest
are `undecided`. If all runs are suspect, the front consists of suspect trials, marked `suspect`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Union

import numpy as np

from engine import Knobs
from harness import ResultsError
from harness.numerics.posterior import coded, posterior
from harness.results.metrics import METRICS, SPEEDS, Direction, objectives_of
from harness.results.rows import shared_texts

from .estimates import estimates

if TYPE_CHECKING:
    import pandas as pd


RUNS, WITHIN, ERROR = 2, 0.05, 0.03  # defaults of the study's `confirm` group
EQUAL = 3.0  # standard errors within which memory counts as equal: the least of many readings is far off
LEAST = 1e-9  # floor of a KL divergence or a byte count, so that it has a logarithm
Rows = Union["pd.DataFrame", "Analysis"]  # rows as `read_trials` gives them, or their analysis


class Analysis:
    """Estimates, posterior and standings of a study's rows, each computed once, on first use.

    A report that needs several of them passes one `Analysis` instead of the rows. The rows must not change meanwhile.
    """

    def __init__(self, df: pd.DataFrame, *, runs: int = RUNS, within: float = WITHIN, error: float = ERROR) -> None:
        self.df, self.runs, self.within, self.error = df, runs, within, error

    @cached_property
    def objectives(self) -> dict[str, Direction]:
        return objectives_of(self.df)

    @cached_property
    def estimates(self) -> pd.DataFrame:
        return estimates(self.df)

    @cached_property
    def measured(self) -> pd.DataFrame:
        shared_texts(self.df)
        every = self.estimates
        whole = every[list(self.objectives)].notna().all(axis=1)
        some = every[whole & every["feasible"] & (every["origin"] != "reference")]
        return some[~some["suspect"]] if not some["suspect"].all() else some

    @cached_property
    def duels(self) -> Duels:
        return Duels(self.measured, list(self.objectives), self.within)

    @cached_property
    def standings(self) -> pd.DataFrame:
        every, members = self.measured, self.duels.members()
        doubt, standing = np.full(len(every), np.nan), np.full(len(every), "dominated", object)
        doubt[members], standing[members] = self.duels.doubt(members), "front"
        if every["fresh_runs"].iloc[members].any():
            order = members[np.argsort(doubt[members], kind="stable")]
            mean = doubt[order].cumsum() / np.arange(1, len(order) + 1)
            standing[order[max(1, (mean <= self.error).sum()) :]] = "undecided"
        out = every.assign(standing=standing, doubt=doubt)
        out["confirmed"] = (out["fresh_runs"] >= self.runs) & (out["doubt"] <= self.error)
        first = next(iter(self.objectives))
        return out.sort_values(first, ascending=self.objectives[first] == "minimize", kind="stable")


def analysed(rows: Rows, **rules: Any) -> Analysis:
    """The analysis of rows by the given rules of confirmation; an `Analysis` keeps its own."""
    return rows if isinstance(rows, Analysis) else Analysis(rows, **rules)


def measured(rows: Rows) -> pd.DataFrame:
    """The streamed, feasible trials with figures for all objectives, without suspect ones unless all are suspect."""
    return analysed(rows).measured


def reference(rows: Rows) -> pd.DataFrame:
    """The estimate of the reference: one line, or none if it was not measured."""
    every = analysed(rows).estimates
    return every[every["origin"] == "reference"]


def losses(some: pd.DataFrame, objectives: Sequence[str]) -> np.ndarray:
    """(points, objectives): the objectives with signs so that less is better."""
    return some[list(objectives)].to_numpy(float) * signs(objectives)


def signs(objectives: Sequence[str]) -> np.ndarray:
    """(objectives): -1 where more is better, else 1."""
    return np.array([-1.0 if METRICS[name] == "maximize" else 1.0 for name in objectives])


def standings(rows: Rows, **rules: Any) -> pd.DataFrame:
    """All measured trials with `standing` (front, undecided or dominated), `doubt` (NaN if dominated) and `confirmed`.

    Ordered by the first objective, best first. rules: `runs`, `within` and `error` of the study's `confirm` group.
    """
    return analysed(rows, **rules).standings


def front(rows: Rows, **rules: Any) -> pd.DataFrame:
    """The members of the front in `standings(rows, **rules)`, best in the first objective first."""
    every = standings(rows, **rules)
    return every[every["standing"] == "front"]


def nondominated(values: np.ndarray) -> np.ndarray:
    """Which rows of losses (points, objectives) no other row dominates: bool (points)."""
    kept = np.zeros(len(values), bool)
    for i in np.lexsort(values.T[::-1]):  # a dominating point sorts first
        others = values[kept]
        kept[i] = not ((others <= values[i]).all(1) & (others < values[i]).any(1)).any()
    return kept


class Duels:
    """Comparisons of all pairs of points, by their positions in `some`: which one wins, and with what probability.

    `drawn` has draws of the true speeds as logarithms, less is better: (draws, points, speeds among the objectives).
    """

    def __init__(self, some: pd.DataFrame, objectives: Sequence[str], within: float) -> None:
        self._logs = np.log(np.maximum(some[list(objectives)].to_numpy(float), LEAST)) * signs(objectives)
        self.se = some[[f"{name}_rel_se" for name in objectives]].to_numpy(float)
        self.fast = np.array([name in SPEEDS for name in objectives])
        self._variance = np.where(self.fast, 0.0, self.se**2)
        self._margin = float(np.log1p(within))
        knobs = (*Knobs.names(), "removed_knobs")
        known = np.column_stack([self._logs[:, ~self.fast], *(coded(some[name]) for name in knobs)])
        single = some["runs"].to_numpy() < 2
        posteriors = [posterior(self._logs[:, k], self.se[:, k], single, known) for k in np.flatnonzero(self.fast)]
        self.drawn = np.stack([drawn for _, drawn in posteriors], axis=2) if posteriors else np.empty((1, len(some), 0))
        self._means = self._logs.copy()
        for k, (mean, _) in zip(np.flatnonzero(self.fast), posteriors, strict=True):
            self._means[:, k] = mean
        self.spread = self.drawn.std(axis=0)

    def members(self, among: np.ndarray | None = None) -> np.ndarray:
        """Positions of the points that none beats by posterior means, nor, among these, by estimates.

        With `among`, only those positions are compared.
        """
        unbeaten = self._unbeaten(self._means, np.arange(len(self._logs)) if among is None else among)
        return np.sort(self._unbeaten(self._logs, unbeaten))

    def plausible(self) -> np.ndarray:
        """Positions of the members and of the points near them, which no member beats by twice `within` in the mean."""
        members = self.members()
        near = [not self._far(i, members) for i in range(len(self._logs))]
        return np.flatnonzero(near)

    def doubt(self, which: Iterable[int]) -> np.ndarray:
        """The probability, for each position in `which`, that another point is truly better by more than `within`."""
        return np.array([self.wins(i)[1].any(axis=1).mean() for i in which])

    def wins(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """The rivals of point i (positions), and bool (draws, rivals): a rival is truly better by more than `within`."""
        gap = (self._means - self._means[i])[:, self.fast] - 4 * np.hypot(self.spread, self.spread[i])
        rivals = np.flatnonzero(self._no_worse(i) & (gap < 0).all(axis=1))
        rivals = rivals[rivals != i]
        ahead = self.drawn[:, [i]] - self.drawn[:, rivals]
        return rivals, np.logical_and((ahead >= 0).all(axis=2), (ahead > self._margin).any(axis=2))

    def _no_worse(self, i: int, which: Any = slice(None)) -> np.ndarray:
        """Which points are no worse than point i in all objectives that are no speed: bool (points)."""
        return (self._logs[which] <= self._logs[i] + self._equal(i, which))[:, ~self.fast].all(axis=1)

    def _far(self, i: int, members: np.ndarray) -> bool:
        ahead = (self._means[i] - self._means[members])[:, self.fast]
        return bool((self._no_worse(i, members) & (ahead >= 0).all(axis=1) & (ahead > 2 * self._margin).any(axis=1)).any())

    def _unbeaten(self, logs: np.ndarray, which: np.ndarray) -> np.ndarray:
        """Takes the fastest first and keeps each that no kept one beats, so that a member beats every point left out."""
        order = which[np.lexsort((logs[which][:, ~self.fast].sum(axis=1), logs[which][:, self.fast].sum(axis=1)))]
        kept = np.empty(len(order), int)
        n = 0
        for i in order:
            equal, others = self._equal(i, kept[:n]), logs[kept[:n]] - logs[i]
            if not ((others <= equal).all(axis=1) & (others < -equal).any(axis=1)).any():
                kept[n], n = i, n + 1
        return kept[:n]

    def _equal(self, i: int, which: Any = slice(None)) -> np.ndarray:
        """(points, objectives): differences from point i that count as equal; almost zero for speeds."""
        return LEAST + EQUAL * np.sqrt(self._variance[which] + self._variance[i])


def knee(rows: Rows, **rules: Any) -> int | None:
    """Trial number of the knee of `front(rows, **rules)`: the member nearest to the best value of each objective.

    The distance is Euclidean in the logarithms of the objectives, so that equal ratios weigh the same: 3 % of memory never
    outweighs half the speed (compromise solution, Yu and Zeleny, 1973). Differences of memory within its noise count as
    zero. None without a front.
    """
    found = analysed(rows, **rules)
    best, objectives = front(found), list(found.objectives)
    if best.empty:
        return None
    logs = np.log(np.maximum(np.abs(losses(best, objectives)), LEAST)) * signs(objectives)
    noise = EQUAL * best[[f"{name}_rel_se" for name in objectives]].fillna(0).to_numpy(float)
    apart = logs - logs.min(0)
    apart[(apart <= noise) & np.array([name not in SPEEDS for name in objectives])] = 0
    return int(best.index[(apart**2).sum(1).argmin()])


def best_under(df: pd.DataFrame, memory_gb: float, max_perplexity: float | None = None) -> pd.Series:
    """The fastest trial whose process stayed within `memory_gb` and, if given, `max_perplexity`. Raises `ResultsError`."""
    every = measured(df)
    some = every[every["peak_memory_gb"] <= memory_gb]
    if max_perplexity is not None:
        some = some[some["perplexity"] <= max_perplexity]
    if some.empty:
        least = every["peak_memory_gb"].min()
        raise ResultsError(
            f"no trial stays within {memory_gb:g} GB and the given perplexity; the least memory is {least:.3g} GB"
        )
    return some.loc[some["decode_tok_s"].idxmax()]
