"""Fit: a Bayesian linear model of a token's time. Its terms are those of `harness.forecast.speed`, each with a coefficient,
and two that only a study's own runs teach.

    ms = base + io * (bytes read / bandwidth) + streamed * (share of layers that hold only a part of their experts)
       + two_widths * (share of layers with experts of two widths) + missed * (layers with a miss)
       + requantized * (experts that are brought to another width)

The noise is relative to the time. Its standard deviation has an inverse-gamma prior, so that few rows can widen it and not
remove it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.forecast.interval import COVERAGE, WIDEST
from harness.numerics.student_t import t_quantile

NOISE_SD = 0.09  # relative, from run to run: what repeats on two machines gave
DEGREES = 5.0  # of freedom of that prior, and of the intervals
INADEQUACY_SD = 0.05  # of what the features do not explain, however many rows there are
IO_SD = 0.35  # of the coefficient of io: the locality of other texts, and waits that are hidden
STEPS = 12
LEAST_SHARE = 0.3  # of the base that a forecast may fall to: coefficients may be negative


@dataclass(frozen=True)
class Features:
    """What one token of a setting needs, by arithmetic; the order is that of the coefficients after the base."""

    io_ms: float = 0.0
    streamed: float = 0.0
    two_widths: float = 0.0
    missed: float = 0.0
    requantized: float = 0.0
    io_spread: float = 0.0  # relative sd of io_ms between possible routings

    @property
    def vector(self) -> np.ndarray:
        return np.array([1.0, self.io_ms, self.streamed, self.two_widths, self.missed, self.requantized])


@dataclass(frozen=True)
class Figures:
    """Of a machine: the time of a token with everything in memory, ms, and its relative sd; of a layer that may miss an
    expert and of one that does, ms, as in `harness.forecast.speed`, with the sd of the latter; of the disk."""

    base_ms: float
    base_sd: float
    sync_ms: float
    missed_ms: float
    missed_sd: float
    disk_gbps: float


@dataclass(frozen=True)
class Prior:
    """Means and standard deviations of the coefficients, ms."""

    mean: np.ndarray
    sd: np.ndarray


@dataclass(frozen=True)
class Speed:
    """Tokens a second with an 80 % interval."""

    tok_s: float
    low: float
    high: float

    @property
    def interval(self) -> tuple[float, float, float]:
        """Lower end, middle and upper end."""
        return self.low, self.tok_s, self.high

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def prior(figures: Figures, layers: int, io_sd: float = IO_SD) -> Prior:
    """The prior for a model of `layers` layers with routed experts, by the figures of its machine."""
    base_ms, waits_ms = figures.base_ms, layers * figures.sync_ms
    layer_ms = base_ms / layers
    mean = [base_ms, 1.0, waits_ms, 0.1 * base_ms, figures.missed_ms, 0.25 * layer_ms]
    sd = [figures.base_sd * base_ms, io_sd, 0.2 * base_ms + 0.5 * waits_ms, 0.2 * base_ms, figures.missed_sd, 0.5 * layer_ms]
    return Prior(np.array(mean), np.array(sd))


@dataclass(frozen=True)
class Fit:
    """The posterior: coefficients, their covariance, and the relative sd of the noise."""

    mean: np.ndarray
    covariance: np.ndarray
    noise_sd: float

    def speed(self, features: Features, factor: float = 1.0, factor_sd: float = 0.0) -> Speed:
        """Tokens a second of a setting; `factor` multiplies the speed (the machine's state), with its relative sd."""
        x = features.vector
        ms = max(float(x @ self.mean), LEAST_SHARE * float(self.mean[0]))
        parameters = float(x @ self.covariance @ x) / ms**2
        locality = features.io_spread * self.mean[1] * features.io_ms / ms
        sd = math.sqrt(parameters + locality**2 + self.noise_sd**2 + INADEQUACY_SD**2 + factor_sd**2)
        width = min(t_quantile((1 + COVERAGE) / 2, DEGREES) * sd, WIDEST)
        middle = 1000 / ms * factor
        return Speed(middle, middle * math.exp(-width), middle * math.exp(width))


def fit(some: Sequence[Features], ms: Sequence[float], prior: Prior) -> Fit:
    """The posterior after runs of `some` settings that took `ms` a token. Without runs it is the prior."""
    sure = np.diag(1 / prior.sd**2)
    mean, covariance, noise = prior.mean, np.diag(prior.sd**2), NOISE_SD
    if not len(some):
        return Fit(mean, covariance, noise)
    x, y = np.array([one.vector for one in some]), np.array(ms, float)
    least = LEAST_SHARE * float(np.min(y))
    expected = y
    for _ in range(STEPS):
        weights = 1 / (noise**2 + INADEQUACY_SD**2) / np.maximum(expected, least) ** 2
        covariance = np.linalg.inv((x.T * weights) @ x + sure)
        mean = covariance @ ((x.T * weights) @ y + sure @ prior.mean)
        expected = x @ mean
        residuals = y / np.maximum(expected, least) - 1
        noise = math.sqrt((DEGREES * NOISE_SD**2 + float((residuals**2).sum())) / (DEGREES + len(y)))
    return Fit(mean, covariance, noise)
