"""The speeds of a run: what each measures, and how often the interval covers the truth."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from harness.numerics.speed_interval import speed_interval, speeds
from harness.run.stopping.early_stopping import Early

NEED = 0.8  # standard deviations, above which a token waits
TRUTH = 1000 / (30 + NormalDist().cdf(-NEED) * (20 + 60 / 1.5))


def times(n: int, likeness: float, rng: np.random.Generator) -> np.ndarray:
    """Token times in ms (n): 30 of compute, plus a heavy-tailed wait where a slowly varying need for reads is high."""
    need = np.empty(n)
    need[0] = rng.standard_normal()
    for i, noise in enumerate(rng.standard_normal(n - 1) * np.sqrt(1 - likeness**2)):
        need[i + 1] = likeness * need[i] + noise
    return 30 + np.where(need > NEED, 20 + 60 * rng.pareto(2.5, n), 0)


@pytest.mark.parametrize(
    ("likeness", "tokens", "stated"),
    [(0.0, 300, 0.92), (0.5, 300, 0.93), (0.8, 300, 0.91), (0.9, 300, 0.85), (0.8, 1000, 0.92), (0.8, 60, 0.79)],
)
def test_the_interval_covers_the_truth_as_often_as_stated(likeness: float, tokens: int, stated: float) -> None:
    rng = np.random.default_rng(7)
    runs = [speed_interval(times(tokens, likeness, rng)) for _ in range(400)]
    assert np.mean([low <= TRUTH <= high for _, low, high in runs]) == pytest.approx(stated, abs=0.035)


def test_the_early_stop_bounds_the_same_speed() -> None:
    """A run with hiccups: tokens over time is below the bound, although the steady speed is above."""
    run = np.full(3200, 10.0)
    run[::40] = 500
    bound = Early(1.0, 0.01, len(run)).upper_tok_s(run)
    assert speed_interval(run)[0] <= bound < speeds(run)["steady_tok_s"]


def test_misses_and_hiccups_count_in_full_and_the_steady_speed_leaves_hiccups_out() -> None:
    every_fourth = np.where(np.arange(320) % 4 == 0, 130.0, 10.0)
    assert speed_interval(every_fourth)[0] == pytest.approx(25)  # the median token alone gives 100
    assert speeds(every_fourth)["steady_tok_s"] == pytest.approx(25)
    hiccup = np.full(320, 10.0)
    hiccup[100] = 5000
    speed, low, high = speed_interval(hiccup)
    assert speed == pytest.approx(1000 * 320 / hiccup.sum()) and low < speed < high
    assert speeds(hiccup)["steady_tok_s"] == pytest.approx(100)


def test_a_seed_fixes_the_interval_and_the_speed_lies_in_it() -> None:
    run = times(200, 0.5, np.random.default_rng(0))
    speed, low, high = speed_interval(run)
    assert low < speed < high
    assert speed_interval(list(run)) == (speed, low, high)
    assert speed_interval(run, seed=1)[0] == speed
    assert speed_interval(run, level=0.5)[1] > low


@pytest.mark.parametrize("n", [1, 2, 7, 8, 17])
def test_short_runs_have_a_speed(n: int) -> None:
    assert speed_interval([20.0] * n) == pytest.approx((50, 50, 50))
    assert speeds([20.0] * n)["steady_tok_s"] == pytest.approx(50)
    for speed in (speed_interval, speeds):
        with pytest.raises(ValueError, match="no token times"):
            speed([])
