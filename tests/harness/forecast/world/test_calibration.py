"""Tests of the fit to published measurements: it finds what made the times, and stands for engines it has not seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from harness.forecast.speed import Work
from harness.forecast.world.calibration import fit, fitted
from harness.forecast.world.measurements import world
from harness.forecast.world.setting import Published


def made(memory: float, layer_ms: float, disk: float, sd: float) -> list[Published]:
    """Times of 12 engines with these efficiencies, and noise of standard deviation `sd` between engines."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(24):
        work = Work(float(rng.uniform(1, 40)), (float(rng.uniform(0, 8)),), (60.0,), 60, 60)
        ms = work.weights_gb / (400 * memory) * 1e3 + 60 * layer_ms + work.missed_gb[0] / (5 * disk) * 1e3
        ms *= float(np.exp(sd * rng.standard_normal()))
        one = dataclasses.replace(world()[0], engine=f"engine {number // 2}", tokens_per_s=1000 / ms, hit_rate=None)
        found.append(Published(one, 400, 5, work, 0.2, (0.5,)))
    return found


def test_the_fit_finds_the_figures_that_made_the_times() -> None:
    found = fit(made(0.8, 0.3, 0.5, 0.002))
    assert found.disk_efficiency == pytest.approx(0.5, rel=0.01) and found.layer_ms == pytest.approx(0.3, rel=0.3)
    assert found.sd < 0.01 and len(found.engines) == 12 and found.degrees == 9


def test_more_noise_is_more_uncertainty() -> None:
    some = made(0.8, 0.3, 0.5, 0.5)
    rates = [fit(one).rates(400, 5, some[0].work) for one in (made(0.8, 0.3, 0.5, 0.1), some)]
    assert rates[0].inadequacy_sd < rates[1].inadequacy_sd and rates[0].disk_sd < rates[1].disk_sd


def test_the_stored_fit_is_read() -> None:
    found = fitted()
    assert 0 < found.memory_efficiency < 1.5 and 0 < found.disk_efficiency < 1.5 and len(found.engines) >= 8
