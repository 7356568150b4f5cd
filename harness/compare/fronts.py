"""Fronts: how two studies' fronts compare in hypervolume, and which points of one the other beats beyond noise.

Both follow from draws of the true figures of the front's points (`Side.drawn`). A point is beaten beyond noise if, with a
probability of at least `SURE`, some point of the other front is truly no worse in all objectives and faster by more than
`within` (the rule that `confirm` has inside a study). The share of beaten points is the coverage (Zitzler and Thiele, 1999).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis.hypervolume import shared_corner, volume
from harness.analysis.pareto import EQUAL, LEAST, WITHIN, losses, signs
from harness.results.metrics import SPEEDS

from .identity import Identity
from .settings import BETTER, NOISE, SAME, WORSE
from .sides import Side

SURE = 0.95


@dataclass(frozen=True)
class Fronts:
    """Two fronts compared, or the reason why they are not. `low` and `high` end the 95 % interval of the ratio."""

    reason: str = ""
    corner: tuple[float, ...] = ()
    volumes: tuple[float, float] = (np.nan, np.nan)  # base, other
    ratio: float = np.nan
    low: float = np.nan
    high: float = np.nan
    base_beaten: tuple[int, ...] = ()  # trials of the base's front that the other front beats
    other_beaten: tuple[int, ...] = ()

    @property
    def verdict(self) -> str:
        if self.low <= 1 <= self.high:
            return SAME if self.low == self.high else NOISE
        return BETTER if self.ratio > 1 else WORSE


def compare_fronts(base: Side, other: Side, known: Identity) -> Fronts:
    """Hypervolume ratio (other / base) up to a shared corner, and the coverage in both directions."""
    names = base.objectives
    if names != other.objectives:
        return Fronts(f"the objectives differ ({', '.join(names)}; {', '.join(other.objectives)})")
    if reasons := [known.incomparable[name] for name in names if name in known.incomparable]:
        return Fronts("; ".join(dict.fromkeys(reasons)))
    corner = shared_corner([base.front, other.front], names)
    volumes = _volume(losses(base.front, names), corner, names), _volume(losses(other.front, names), corner, names)
    mine, theirs = (
        np.array([_volume(points * signs(names), corner, names) for points in side.drawn]) for side in (base, other)
    )
    both = (mine > 0) & (theirs > 0)
    low, high = np.quantile(theirs[both] / mine[both], [0.025, 0.975]) if both.any() else (np.nan, np.nan)
    return Fronts(
        "", corner, volumes, volumes[1] / volumes[0] if volumes[0] else np.nan, float(low), float(high),
        beaten(base, other), beaten(other, base),
    )  # fmt: skip


def beaten(side: Side, by: Side) -> tuple[int, ...]:
    """Trials of a side's front that the front of `by` beats beyond noise. Both have the same objectives."""
    names = side.objectives
    fast = np.array([name in SPEEDS for name in names])
    margin = np.log1p(side.rules.get("within", WITHIN))
    mine, theirs = _logs(side.drawn, names), _logs(by.drawn, names)
    own, rival = (_logs(s.front[names].to_numpy(float), names) for s in (side, by))
    se, its_se = (np.nan_to_num(s.front[[f"{n}_rel_se" for n in names]].to_numpy(float)) for s in (side, by))
    found = []
    for i, trial in enumerate(side.front.index):
        equal = LEAST + EQUAL * np.hypot(its_se, se[i])
        level = (rival <= own[i] + equal)[:, ~fast].all(axis=1)  # no worse in memory and quality
        if fast.any():
            ahead = mine[:, [i]][:, :, fast] - theirs[:, :, fast]
            wins = (ahead >= 0).all(axis=2) & (ahead > margin).any(axis=2) & level
        else:
            wins = np.tile(level & (rival < own[i] - equal).any(axis=1), (len(mine), 1))
        if wins.any(axis=1).mean() >= SURE:
            found.append(int(trial))
    return tuple(found)


def _logs(values: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Logarithms with signs so that less is better."""
    return np.log(np.maximum(values, LEAST)) * signs(names)


def _volume(points: np.ndarray, corner: tuple[float, ...], names: Sequence[str]) -> float:
    return volume(points, np.array(corner, float) * signs(names))
