"""Hypervolume: by hand, its reference point, and the contribution of each origin."""

from __future__ import annotations

import numpy as np
import pytest
from synthetic import FIVE, trials

from harness import ResultsError
from harness.analysis.hypervolume import contributions, hypervolume, reference_point, shared_objectives, volume


def test_hypervolume_by_hand() -> None:
    assert hypervolume(trials((10, 2, 5)), (0, 4, 8)) == pytest.approx(10 * 2 * 3)
    # Two boxes of 10 x 2 x 3 and 4 x 3 x 3 that share 4 x 2 x 3.
    assert hypervolume(trials((10, 2, 5), (4, 1, 5)), (0, 4, 8)) == pytest.approx(60 + 36 - 24)
    assert hypervolume(trials((10, 5, 5)), (0, 4, 8)) == 0  # beyond the reference point
    assert hypervolume(trials(), (0, 4, 8)) == 0


def test_reference_point_is_a_tenth_beyond_the_worst_of_all_fronts() -> None:
    other = trials((1, 20, 3))
    assert reference_point(FIVE, other) == pytest.approx((1 / 1.1, 22, 8.8))
    assert hypervolume(FIVE, reference_point(FIVE, other)) > 0


def test_contributions_are_the_volume_lost_without_an_origin() -> None:
    df = trials((10, 2, 5), (4, 1, 5), (3, 3, 6), origin=["sampler", "random", "sampler"])
    found = contributions(df)
    assert found["trials"].to_dict() == {"sampler": 2, "random": 1}
    assert found["on_front"].to_dict() == {"sampler": 1, "random": 1}
    assert (found["lost"] > 0).all() and found.loc["sampler", "lost"] > found.loc["random", "lost"]


def test_volume_of_two_boxes_in_two_dimensions() -> None:
    assert volume(np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([4.0, 4.0])) == 3 * 1 + 2 * 3 - 2 * 1


def test_studies_with_different_objectives_are_refused() -> None:
    with pytest.raises(ResultsError, match="different objectives"):
        shared_objectives(trials((1, 1, 1)), trials((1, 1, 1)).assign(objectives="decode_tok_s,kl"))
