"""Tests of the fit: what the prior says, how rows change it, and how wide the intervals are."""

from __future__ import annotations

import numpy as np
import pytest

from harness.forecast.study.fit import Features, Figures, Prior, fit, prior

RESIDENT = Features()
LAYERS = 6


def of_machine(sync_ms: float = 0.0, missed_ms: float = 0.0) -> Prior:
    return prior(Figures(20.0, 0.25, sync_ms, missed_ms, 1.0, 1.0), LAYERS)


def streamed(io_ms: float, missed: float = 3.0) -> Features:
    return Features(io_ms=io_ms, streamed=1.0, missed=missed)


def test_without_runs_the_prior_is_the_forecast() -> None:
    found = fit([], [], of_machine())
    resident = found.speed(RESIDENT)
    assert resident.tok_s == pytest.approx(50) and resident.low < 40 < resident.tok_s < 60 < resident.high
    assert found.speed(streamed(20.0)).tok_s == pytest.approx(25)


def test_the_wait_for_a_choice_slows_what_is_streamed() -> None:
    found = fit([], [], of_machine(sync_ms=1.0))
    assert found.speed(streamed(0.0)).tok_s == pytest.approx(1000 / 26) and found.speed(RESIDENT).tok_s == pytest.approx(50)


def test_a_miss_costs_more_than_its_bytes() -> None:
    found = fit([], [], of_machine(missed_ms=1.5))
    assert found.speed(streamed(0.0, missed=2.0)).tok_s == pytest.approx(1000 / 23)


def test_runs_correct_the_prior_and_narrow_the_interval() -> None:
    rng = np.random.default_rng(0)
    some = [RESIDENT, *(streamed(io, missed) for io, missed in rng.uniform((1, 1), (20, 6), (11, 2)))]
    truth = lambda f: 30 + 0.7 * f.io_ms + 2 * f.streamed + 0.5 * f.missed  # noqa: E731
    ms = [truth(f) * float(np.exp(0.03 * rng.normal())) for f in some]
    before, after = fit([], [], of_machine()), fit(some, ms, of_machine())
    new = streamed(8.0, 4.0)
    measured = 1000 / truth(new)
    assert abs(after.speed(new).tok_s / measured - 1) < 0.05 < abs(before.speed(new).tok_s / measured - 1)
    width = lambda found: found.speed(new).high / found.speed(new).low  # noqa: E731
    assert width(after) < width(before) and measured in after.speed(new)
    assert after.noise_sd < 0.09


def test_noisy_runs_widen_the_interval() -> None:
    some = [RESIDENT] * 8
    quiet, noisy = (fit(some, [20 * (1 + sd * s) for s in (1, -1) * 4], of_machine()) for sd in (0.01, 0.3))
    assert noisy.noise_sd > 2 * quiet.noise_sd
    assert noisy.speed(RESIDENT).low < quiet.speed(RESIDENT).low < quiet.speed(RESIDENT).high < noisy.speed(RESIDENT).high


def test_a_common_factor_and_its_doubt() -> None:
    found = fit([], [], of_machine())
    slow = found.speed(RESIDENT, 0.5, 0.3)
    assert (
        slow.tok_s == pytest.approx(25)
        and slow.high / slow.low > found.speed(RESIDENT, 0.5).high / found.speed(RESIDENT, 0.5).low
    )


def test_unlike_routings_widen_the_interval() -> None:
    found = fit([], [], of_machine())
    known, unknown = streamed(20.0), Features(io_ms=20.0, streamed=1.0, missed=3.0, io_spread=0.5)
    assert found.speed(unknown).low < found.speed(known).low


def test_a_width_without_meaning_stays_finite() -> None:
    found = fit([], [], prior(Figures(20.0, 1e5, 0.0, 0.0, 0.1, 1.0), 6)).speed(Features())
    assert 0 < found.low < found.tok_s < found.high < 1e6


def test_a_forecast_stays_positive() -> None:
    some = [streamed(io) for io in (1.0, 30.0)]
    found = fit(some, [30.0, 1.0], of_machine())
    assert found.speed(streamed(200.0)).low > 0
