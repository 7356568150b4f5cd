"""Confirmation: which trials to measure again, in which order, until the front is certain beyond noise.

A trial is on the front, or not, on the evidence of single runs. For every plausible member p (no trial beats it by much)
and every rival q, the posterior of the true speeds gives the probability P that q is truly no worse and faster by more
than `within`. A run of either is worth most where P is near a half: w = P (1 - P), divided between the two in proportion
to how much one more run would reduce the variance of their difference. A trial's worth is the sum over its pairs. This is
optimal computing budget allocation (Chen et al., 2000), one step ahead. Each p is weighted by doubt (1 - doubt)^3, where
its doubt is the probability that any rival beats it: members that few runs can settle come first, because a budget spread
over all settles none. Members that only lack their `runs` fresh runs come after those.

The recommended settings and the default come before all others, with the rivals that keep a recommendation unconfirmed
(`recommend.py`). Nothing is stored between sweeps: everything follows from the rows, so a resumed study continues.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.analysis.pareto import ERROR, RUNS, WITHIN, Duels, measured
from harness.results.metrics import objectives_of

from .recommend import recommended, to_confirm

if TYPE_CHECKING:
    import pandas as pd

HOPELESS = 0.7  # a beaten trial with more doubt than this is no plausible member
SHARE = 0.1  # of the budget that one sweep may use, so that its results decide the next sweep
BEGUN = 3.0  # factor on the worth of a trial with some but fewer than `runs` fresh runs: two are worth more than twice one
TINY = 1e-12
LEAST_WORTH = 0.002  # a run worth less would decide nothing


def next_sweep(
    df: pd.DataFrame,
    *,
    runs: int = RUNS,
    within: float = WITHIN,
    error: float = ERROR,
    spent: int,
    budget: int,
    sweep: int,
    own: Collection[int] | None = None,
    **wishes: Any,
) -> list[int]:
    """Trial numbers in the order to measure them, each at most once, at most as many as the budget has left.

    Every other sweep is reversed. With `own`, only these trials are taken; other machines confirm theirs. `wishes` are the
    arguments of `recommended`. Empty once `budget` runs are spent, or if the front is stable (every member has `runs` fresh
    runs and the mean doubt is at most `error`) and all recommended settings are confirmed.
    """
    some = measured(df)
    left = min(budget - spent, max(4, round(SHARE * budget)))
    if left <= 0 or some.empty:
        return []
    duels = Duels(some, list(objectives_of(df)), within)
    fresh, n = some["fresh_runs"].to_numpy(int), some["runs"].to_numpy(int)
    one_run = (duels.se[:, duels.fast] ** 2).max(axis=1, initial=0) * np.maximum(np.where(fresh >= 2, fresh, n), 1)
    variance = (duels.spread**2).max(axis=1, initial=0)
    gain = variance**2 / (variance + one_run + TINY)  # reduction of the variance by one more run
    members = np.isin(np.arange(len(some)), duels.members())
    worth, doubts = np.zeros(len(some)), []
    for i in duels.plausible():
        rivals, wins = duels.wins(i)
        doubt = float(wins.any(axis=1).mean())
        if members[i]:
            doubts.append(doubt)
        elif doubt > HOPELESS:
            continue
        p = wins.mean(axis=0)
        unsure = p * (1 - p)
        weight = doubt * (1 - doubt) ** 3 * unsure / (unsure.sum() + TINY) / (variance[i] + variance[rivals] + TINY)
        worth[i] += (weight * gain[i]).sum()
        np.add.at(worth, rivals, weight * gain[rivals])
    lacking = members & (fresh < runs)
    choices = recommended(df, runs=runs, within=within, error=error, **wishes)
    first = [int(some.index.get_loc(t)) for t in to_confirm(choices, df, runs)]
    if not first and not lacking.any() and np.mean(doubts) <= error:
        return []
    wanted = (worth > LEAST_WORTH) | lacking
    wanted[first] = True
    if own is not None:
        wanted &= some.index.isin(own)
    worth = np.where((fresh > 0) & (fresh < runs), BEGUN, 1.0) * worth
    rank = {i: n for n, i in enumerate(first)}
    order = sorted(np.flatnonzero(wanted), key=lambda i: (rank.get(int(i), len(first)), -worth[i], i))[:left]
    trials = [int(some.index[i]) for i in order]
    return trials[::-1] if sweep % 2 else trials
