"""Figures of a trial with their intervals: those of reports, tables, plots and setting files.

They are the estimates of `harness.analysis.estimates`, so every place that shows a trial shows the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from harness.analysis.estimates import noise
from harness.analysis.pareto import Analysis
from harness.numerics.student_t import t_quantile
from harness.results.metrics import METRICS

DIGITS = 8  # significant ones of a figure; beyond them, sums differ between processors


def figures_of(found: Analysis, point: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """{value, low, high, noise} of each measured figure of `point`, a row of `found.estimates`.

    `low` and `high` are the ends of the estimate's 95 % interval. One run lies, in 95 of 100 cases, between the true value
    divided by 1 + `noise` and multiplied by it.
    """
    spread, figures = noise(found.df), {}
    for name in METRICS:
        value, low, high = (float(point[f"{name}{end}"]) for end in ("", "_low", "_high"))
        if np.isfinite(value):
            half = t_quantile(0.975, spread.loc[name, "degrees"]) * float(spread.loc[name, "sd"])
            ends = {"low": low, "high": high, "noise": float(np.expm1(half))}
            figures[name] = {"value": value, **{end: number for end, number in ends.items() if np.isfinite(number)}}
    return {name: {end: _rounded(number) for end, number in ends.items()} for name, ends in figures.items()}


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}") if abs(number) > 10.0**-DIGITS else 0.0
