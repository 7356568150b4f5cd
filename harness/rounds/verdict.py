"""Verdict on a round: kept if its trials raised the hypervolume of the front by more than noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from harness.analysis.hypervolume import volume
from harness.analysis.pareto import WITHIN, Duels, losses, measured, nondominated
from harness.results.metrics import objectives_of

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 200  # draws of the true speeds


@dataclass(frozen=True)
class Verdict:
    """Whether a round is kept; hypervolume before and after, and the standard deviation of the gain."""

    kept: bool
    before: float
    after: float
    noise: float
    evidence: str


def verdict(before: pd.DataFrame, after: pd.DataFrame) -> Verdict:
    """Keep a round if the gain in hypervolume, less its bias, is more than twice its noise.

    before, after: all rows at the round's start and at its end. Both hypervolumes use the estimates at the end, so a
    repeated run of an old trial is not a gain. Once any trial has fresh runs, trials without fresh runs do not count. The
    noise comes from draws of the true speeds (`harness.numerics.posterior`). More points reach a higher maximum by chance;
    the bias is the draws' mean gain above the gain of the estimates.
    """
    every, objectives = measured(after), list(objectives_of(after))
    duels = Duels(every, objectives, WITHIN)
    counts = (every["fresh_runs"] > 0).to_numpy() if every["fresh_runs"].any() else np.ones(len(every), bool)
    known = every.index.isin(measured(before).index)[counts]
    if not len(known) or known.all():
        return Verdict(False, 0.0, 0.0, 0.0, "the round added no trial that counts")
    if not known.any():
        return Verdict(True, 0.0, 0.0, 0.0, "the first points of the study")
    values = losses(every, objectives)[counts]
    worst = values[nondominated(values)].max(0)
    corner = worst + 0.1 * np.abs(worst)

    def volumes(sample: np.ndarray) -> tuple[float, float]:
        return volume(sample[known], corner), volume(sample, corner)

    was, now = volumes(values)
    speeds = np.sign(values[0])[duels.fast]  # losses are negative where more is better
    gains = []
    for drawn in duels.drawn[:DRAWS, counts]:
        sample = values.copy()
        sample[:, duels.fast] = speeds * np.exp(speeds * drawn)
        low, high = volumes(sample)
        gains.append(high - low)
    noise = float(np.std(gains))
    gain = now - was - max(float(np.mean(gains)) - (now - was), 0.0)
    kept = gain > 0 and gain > 2 * noise
    what = f"hypervolume of the front {gain / was:+.1%}, noise {noise / was:.1%}" if was else f"hypervolume {gain:+.3g}"
    why = "kept" if kept else "discarded, because the gain is below twice its noise"
    return Verdict(kept, was, now, noise, f"{what}: {why}")
