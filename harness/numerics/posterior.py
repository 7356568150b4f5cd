"""Posterior of the true speeds: each point's own runs, shrunk towards what its knobs, memory and quality predict.

The first run of the fastest among many similar settings is biased upwards, and few settings can be measured twice. But
settings resemble each other, so a knob's effect in one holds for others. The logarithm of a point's true speed is modelled
as a quadratic in knobs, memory and quality, plus a deviation of the setting itself, plus noise: small-area estimation (Fay
and Herriot, 1979). Each coefficient has its own prior variance, found from the data, so that irrelevant knobs drop out
(automatic relevance determination; Tipping, 2001). The deviation has Student's t distribution, because a few settings
differ much from the quadratic. Where the knobs predict nothing, the scatter is large and a point keeps its own runs.

A single slow run may be a hiccup. With the probability that a wider noise explains it better, it counts as unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DRAWN = 300_000  # values drawn: 1000 for each point up to 300 points, then fewer, at least 100
LEAST_POINTS = 20  # with fewer points no scatter is estimated, and each point keeps its own runs
LEAST_SCATTER = 0.02  # of true speeds about the prediction of the knobs
STEPS = 25  # of expectation maximisation
TAILS = 4.0  # degrees of freedom of the scatter
HICCUPS = 0.05  # prior share of runs that a disturbance slowed


def posterior(losses: np.ndarray, se: np.ndarray, single: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean (points) and draws (draws, points) of true losses, which are logarithms; less is better.

    losses, se: (points), the estimates and their standard errors; single: bool (points), based on one run; known: (points,
    columns), the covariates. Deterministic.
    """
    rng = np.random.default_rng(0)
    draws = max(100, min(1000, DRAWN // max(1, len(losses))))
    luck = rng.standard_normal((draws, len(losses)), dtype=np.float32)
    if len(losses) < LEAST_POINTS:
        return losses, losses + luck * se
    x = _quadratic(known)
    level = losses.mean()
    y = losses - level
    scatter = float(np.var(y)) / 2
    prior = np.full(x.shape[1], scatter / x.shape[1])
    weight = np.ones(len(y))
    for _ in range(STEPS):
        total = scatter / weight + se**2
        cov = np.linalg.inv(x.T @ (x / total[:, None]) + np.diag(1 / prior))
        coefficients = cov @ (x.T @ (y / total))
        residuals = y - x @ coefficients
        own = scatter / weight / total
        squares = (own * residuals) ** 2 + own**2 * ((x @ cov) * x).sum(axis=1) + own * se**2
        scatter = max(float((weight * squares).mean()), LEAST_SCATTER**2)
        weight = (TAILS + 1) / (TAILS + squares / scatter)
        prior = np.maximum(coefficients**2 + np.diag(cov), 1e-10)
    total = scatter / weight + se**2
    own = scatter / weight / total
    mean = level + y - (1 - own) * residuals
    several = coefficients + rng.standard_normal((draws, len(prior))) @ np.linalg.cholesky(cov).T
    fits = (several @ x.T).astype(np.float32)
    drawn = fits + own * (y - fits) + np.sqrt(own) * se * luck
    wide = 9 * (scatter + se**2)
    odds = HICCUPS / (1 - HICCUPS) * 2 * _density(residuals, wide) / _density(residuals, total)  # 2: slow ones only
    hiccup = rng.random(drawn.shape, dtype=np.float32) < np.where(single & (residuals > 0), odds / (1 + odds), 0)
    return mean, level + np.where(hiccup, fits + np.sqrt(scatter) * luck, drawn)


def coded(values: Sequence[Any]) -> np.ndarray:
    """A knob as numbers (points, columns): ranks and a column for unset, or an indicator for every choice but one."""
    column = np.array([None if v is None or v != v else v for v in values], dtype=object)
    is_set = np.array([v is not None for v in column], bool)
    given = column[is_set]
    if any(isinstance(v, str) for v in given):
        return np.column_stack([[v == level for v in column] for level in dict.fromkeys(column)]).astype(float)[:, 1:]
    numbers = given.astype(float)
    ordered = np.sort(numbers)
    ranks = np.zeros(len(column))
    ranks[is_set] = np.searchsorted(ordered, numbers, "left") + np.searchsorted(ordered, numbers, "right") - len(given)
    return np.column_stack([ranks, is_set])


def _quadratic(known: np.ndarray) -> np.ndarray:
    """(points, features): a constant, each column, its square and its products with the others, standardised."""
    linear = _standard(known)
    i, j = np.triu_indices(linear.shape[1])
    return np.column_stack([np.ones(len(known)), linear, _standard(linear[:, i] * linear[:, j])])


def _standard(x: np.ndarray) -> np.ndarray:
    span = x.std(axis=0)
    varies = span > 1e-9 * np.abs(x).max(axis=0, initial=1)
    return (x - x.mean(axis=0))[:, varies] / span[varies]


def _density(x: np.ndarray, variance: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * x**2 / variance) / np.sqrt(variance)
