"""Control runs: a common factor of all speeds in time, from the repeated runs of one setting.

Heat, load and other processes slow all settings alike. The logarithm of the factor is a random walk in time, which the
sentinel's runs observe with their noise; it is relative to the first of them. The walk may move by `WALK_SD` in an hour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from harness.analysis.runs.timeline import order
from harness.decisions.drift import sentinel_trial

from .fit import NOISE_SD

WALK_SD = 0.1  # of the logarithm, in the square root of an hour
LONGEST_H = 9.0  # of a gap: after a longer pause a machine differs no more


@dataclass(frozen=True)
class Factor:
    """Speed relative to that of the first control run, with the sd of its logarithm, which grows after a control run."""

    value: float = 1.0
    sd: float = 0.0


@dataclass(frozen=True)
class Controls:
    """The control runs in order: seconds since the first, and the logarithm of the factor, smoothed. Empty without two."""

    first: datetime | None
    seconds: np.ndarray
    level: np.ndarray

    def at(self, when: datetime | None) -> Factor:
        """The factor at a time: interpolated between two control runs, outside that of the nearest."""
        if self.first is None or when is None:
            return Factor()
        seconds = (when - self.first).total_seconds()
        level = float(np.interp(seconds, self.seconds, self.level))
        apart_h = float(np.min(np.abs(self.seconds - seconds))) / 3600
        return Factor(math.exp(level), WALK_SD * math.sqrt(min(apart_h, LONGEST_H)))


def controls(rows: Sequence[Mapping[str, Any]]) -> Controls:
    """The control runs among the rows of one machine: the first run of the sentinel's trial, and its later ones."""
    trial = sentinel_trial(rows)
    some = sorted((r for r in rows if r["trial"] == trial and r["status"] == "ok" and r["started_at"]), key=order)
    if len(some) < 2:
        return Controls(None, np.zeros(0), np.zeros(0))
    first: datetime = some[0]["started_at"]
    seconds = np.maximum.accumulate([(r["started_at"] - first).total_seconds() for r in some])
    level = smoothed(seconds / 3600, np.log([r["decode_tok_s"] for r in some]))
    return Controls(first, seconds, level - level[0])


def smoothed(hours: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """The mean of a random walk at the times of its noisy observations (Kalman filter, then the smoother of Rauch, Tung and
    Striebel, 1965, in one dimension)."""
    steps = WALK_SD**2 * np.minimum(np.diff(hours), LONGEST_H)
    means, variances = [float(logs[0])], [NOISE_SD**2]
    for value, step in zip(logs[1:], steps, strict=True):
        ahead = variances[-1] + step
        gain = ahead / (ahead + NOISE_SD**2)
        means.append(means[-1] + gain * (float(value) - means[-1]))
        variances.append((1 - gain) * ahead)
    level = np.array(means)
    for n in reversed(range(len(steps))):
        level[n] += variances[n] / (variances[n] + steps[n]) * (level[n + 1] - level[n])
    return level
