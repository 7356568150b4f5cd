"""A run's speed and how sure it is: what the statistic counts, and how often its interval holds the truth."""

from __future__ import annotations

import numpy as np
import pytest

from harness.intervals import STRETCH, speed_interval


def times(n: int, likeness: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) token times in ms: 30 of compute and, where a slowly moving need for reads is high, a heavy-tailed wait."""
    need = np.empty(n)
    need[0] = rng.standard_normal()
    for i, noise in enumerate(rng.standard_normal(n - 1) * np.sqrt(1 - likeness**2)):
        need[i + 1] = likeness * need[i] + noise
    return 30 + np.where(need > 0.8, 20 + 60 * rng.pareto(2.5, n), 0)


@pytest.mark.parametrize("likeness", [0.0, 0.5, 0.8])
def test_the_interval_holds_the_truth_in_nine_of_ten_runs(likeness: float) -> None:
    rng = np.random.default_rng(7)
    long = times(100_000, likeness, rng)
    truth = np.median(1000 * STRETCH / np.convolve(long, np.ones(STRETCH), "valid"))
    held = [low <= truth <= high for _, low, high in (speed_interval(times(300, likeness, rng)) for _ in range(400))]
    assert 0.9 <= np.mean(held) <= 0.99


def test_regular_misses_count_and_one_hiccup_does_not() -> None:
    every_fourth = np.where(np.arange(320) % 4 == 0, 130.0, 10.0)
    assert speed_interval(every_fourth)[0] == pytest.approx(25)  # tokens over total time; the median token says 100
    hiccup = np.full(320, 10.0)
    hiccup[100] = 5000
    assert speed_interval(hiccup) == pytest.approx((100, 100, 100))


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
    with pytest.raises(ValueError, match="no token times"):
        speed_interval([])
