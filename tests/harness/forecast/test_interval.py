"""Tests of intervals and the shares of their sources."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.forecast.interval import NORMAL, interval, spread, widened


def test_squares_add_up_and_shares_are_of_the_square() -> None:
    found = interval(10.0, {"locality": 0.3, "disk": 0.4})
    assert found.high == pytest.approx(10 * math.exp(NORMAL * 0.5)) and found.low * found.high == pytest.approx(100)
    assert found.shares == pytest.approx({"locality": 0.36, "disk": 0.64, "compute": 0, "inadequacy": 0})
    assert 10.0 in found and 30.0 not in found


def test_without_errors_there_is_no_width() -> None:
    found = interval(2.0, {})
    assert (found.low, found.high, set(found.shares.values())) == (2.0, 2.0, {0.0})
    assert found.scaled(3).middle == 6


def test_few_values_make_a_wide_spread() -> None:
    values = [1.0, 1.1, 1.2]
    plain = float(np.std(np.log(values), ddof=1))
    assert spread(values) > 1.5 * plain and spread([5.0]) == 0
    assert widened(1.0, 1000) == pytest.approx(1, abs=0.01)


def test_the_interval_of_one_more_value_covers_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for sample in np.exp(0.3 * rng.standard_normal((2000, 4))):
        middle = math.exp(float(np.mean(np.log(sample[:3]))))
        inside += float(sample[3]) in interval(middle, {"locality": spread(sample[:3])})
    assert 0.77 < inside / 2000 < 0.83


def test_a_width_without_meaning_stays_finite() -> None:
    found = interval(10.0, {"compute": 1e5})
    assert (found.low, found.high) == (pytest.approx(0.01), pytest.approx(1e4)) and found.shares["compute"] == 1
