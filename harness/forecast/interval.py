"""Interval: an 80 % interval of a speed, and how much of it comes from what.

Errors are relative and independent, so they add up as squares of standard deviations of the logarithm. A spread that is
estimated from few values is larger than it looks: each standard deviation is multiplied by Student's t for its degrees of
freedom, divided by the normal's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from harness.numerics.student_t import t_quantile

COVERAGE = 0.8
NORMAL = NormalDist().inv_cdf((1 + COVERAGE) / 2)  # 1.28
WIDEST = math.log(1e3)  # half of the widest interval, as a logarithm: a wider one says as little
SOURCES = ("locality", "disk", "compute", "inadequacy")


@dataclass(frozen=True)
class Interval:
    """A forecast with its interval. `shares`: of the squared width, by source; their sum is 1, or 0 without a width."""

    middle: float
    low: float
    high: float
    shares: Mapping[str, float]

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def scaled(self, factor: float) -> Interval:
        return Interval(self.middle * factor, self.low * factor, self.high * factor, self.shares)


def widened(sd: float, degrees: float) -> float:
    """A standard deviation that was estimated with so many degrees of freedom, as large as a known one must be for an
    interval of the same coverage."""
    return sd * t_quantile((1 + COVERAGE) / 2, max(1.0, degrees)) / NORMAL


def spread(values: Sequence[float]) -> float:
    """The standard deviation of the logarithm of one more value like `values`; 0 for a single one, which is known."""
    if len(values) < 2:
        return 0.0
    sd = float(np.std(np.log(values), ddof=1))
    return widened(sd * math.sqrt(1 + 1 / len(values)), len(values) - 1)


def interval(middle: float, sds: Mapping[str, float]) -> Interval:
    """The interval around `middle` for standard deviations of its logarithm, by source."""
    squares = {name: sds.get(name, 0.0) ** 2 for name in SOURCES}
    total = sum(squares.values())
    width = min(NORMAL * math.sqrt(total), WIDEST)
    shares = {name: square / total if total else 0.0 for name, square in squares.items()}
    return Interval(middle, middle * math.exp(-width), middle * math.exp(width), shares)
