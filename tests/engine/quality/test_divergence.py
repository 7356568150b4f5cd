"""Divergence: the bounds contain the exact divergence for any logits."""

from __future__ import annotations

import numpy as np
import pytest
from divergences import whole_divergence

from engine.quality.divergence import likeliest, log_bucket
from engine.quality.reference import (
    Reference,
)


@pytest.mark.parametrize("most", [1, 7, 64, 300])
@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0, 20.0])
def test_the_bounds_hold_for_any_logits(most: int, spread: float) -> None:
    """Also with few kept entries, and when the other model prefers entries that the reference finds unlikely."""
    rng = np.random.default_rng(round(10 * spread) + most)
    for p in spread * rng.standard_normal((20, 300)):
        ids = likeliest(p, 1e-3, most)
        lse, rest = log_bucket(p, ids)
        some = Reference(
            "", "", 300, *np.zeros((3, 1)), np.array([lse]), np.array([rest]), np.array([len(ids)]), ids, p[ids], np.zeros(0)
        )
        for q in (p + 0.01 * rng.standard_normal(300), spread * rng.standard_normal(300), -p, p):
            low, high = some.divergence(0, q)
            whole = float(whole_divergence(p, q))
            assert low - 1e-9 <= whole <= high + 1e-9
            assert most < 300 or high == pytest.approx(low, abs=1.1e-3 * (np.ptp(q) + np.ptp(p)))


def test_likeliest_leaves_at_most_the_tail() -> None:
    p = np.log(np.array([0.1, 0.4, 0.2, 0.29, 0.01]))
    for tail, kept in ((0.5, [1, 3]), (0.25, [1, 2, 3]), (0.05, [0, 1, 2, 3]), (0, [0, 1, 2, 3, 4])):
        assert likeliest(p, tail).tolist() == kept
    assert likeliest(p, 0, most=2).tolist() == [1, 3]
    assert log_bucket(p, np.arange(5)) == (pytest.approx(0, abs=1e-12), -np.inf)
