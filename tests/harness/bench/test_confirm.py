"""Benchmark of confirmation: noise misleads a front of single runs, and fresh runs correct it."""

from __future__ import annotations

import numpy as np
import pytest

from harness.bench.confirm import DIMENSIONS, TRUTHS, Noise, Simulation, compare
from harness.results.metrics import OBJECTIVES

NAMES = list(OBJECTIVES)


@pytest.mark.parametrize("name", TRUTHS)
def test_each_truth_is_positive_and_repeatable(name: str) -> None:
    x = np.full(DIMENSIONS, 0.4)
    assert TRUTHS[name](x) == TRUTHS[name](x) and min(TRUTHS[name](x).values()) > 0


def test_without_noise_single_runs_find_the_true_front() -> None:
    simulation = Simulation("cache", NAMES, Noise(0, 0, 0), 20, 0, "random")
    first = simulation.rows[["decode_tok_s"]].to_numpy().ravel()
    assert first == pytest.approx([t["decode_tok_s"] for t in simulation.truths])
    assert simulation.true_volume(range(1, 21)) == pytest.approx(1.0)


def test_confirmation_stays_within_its_budget() -> None:
    found = compare("lossless", NAMES, Noise(), 24, 0, 0.5, "random")
    assert found["runs"] <= 12 and 0 <= found["true_before"] <= 1 and 0 <= found["true"] <= 1
    assert found["confirmed"] <= found["size"]
