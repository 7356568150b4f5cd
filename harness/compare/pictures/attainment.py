"""Attainment: the surfaces in a plane that 25, 50 and 75 of 100 draws of a front attain.

A draw of the front attains a point of the plane if one of its settings is at least as good in both objectives. The surface
of 50 % is the median front, and the band from 25 to 75 % shows how sure it is (empirical attainment function; Grunert da
Fonseca, Fonseca and Hall, 2001). moocore computes it exactly.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from harness import ResultsError
from harness.analysis.pareto import signs
from harness.compare.sides import Side

PERCENTILES = (25, 50, 75)
MISSING = "moocore is not installed, so there are no attainment bands; install it: pip install 'headrace[notebooks]'"


def surfaces(side: Side, x: str, y: str) -> dict[int, np.ndarray]:
    """The surfaces of a study's front in a plane: percentile -> corners (n, 2) in units of x and y, best x first.

    Raises `ResultsError` without moocore.
    """
    moocore = _moocore()
    at = [side.objectives.index(name) for name in (x, y)]
    sign = signs([x, y])
    losses = side.drawn[:, :, at] * sign
    draws, points, _ = losses.shape
    sets = np.repeat(np.arange(draws), points)
    found = moocore.eaf(losses.reshape(-1, 2), sets, percentiles=list(PERCENTILES))
    return {p: _ordered(found[found[:, 2] == p][:, :2]) * sign for p in PERCENTILES}


def best_at(corners: np.ndarray, at: np.ndarray, x: str, y: str) -> np.ndarray:
    """The best y that a surface attains with x no worse than each value of `at`; NaN where it attains none."""
    sign_x, sign_y = signs([x, y])
    place = np.searchsorted(corners[:, 0] * sign_x, at * sign_x * (1 + np.sign(at * sign_x) * 1e-12), side="right")
    best = np.minimum.accumulate(corners[:, 1] * sign_y) * sign_y
    return np.where(place > 0, best[np.maximum(place - 1, 0)], np.nan)


def _ordered(losses: np.ndarray) -> np.ndarray:
    return losses[np.lexsort((losses[:, 1], losses[:, 0]))]


def _moocore() -> ModuleType:
    try:
        import moocore
    except ImportError as e:
        raise ResultsError(MISSING) from e
    return moocore
