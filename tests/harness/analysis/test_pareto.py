"""Front, knee and the best under a budget, against hand-computed examples and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from synthetic import FIVE, trials

from harness import ResultsError
from harness.analysis.hypervolume import hypervolume, reference_point
from harness.analysis.pareto import best_under, front, knee
from harness.results.rows import shared_texts


def test_front_by_hand() -> None:
    assert front(FIVE)["trial"].tolist() == [1, 3, 2, 5]


def test_knee_by_hand() -> None:
    # Scaled losses, perplexity by its logarithm, as coordinates from the ideal point:
    # 1: (0, 1, 1), 2: (.947, 0, 1), 3: (.211, .111, .322), 5: (1, .889, 0).
    assert knee(FIVE) == 3
    assert knee(trials()) is None
    assert knee(trials((1, 1, 1))) == 1


@pytest.mark.parametrize("seed", range(8))
def test_front_and_hypervolume_against_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(1, 7, (12, 3)).astype(float)  # a coarse grid, so that ties and doubles occur
    df = trials(*map(tuple, points))
    better = [[(b[0] >= a[0] and b[1] <= a[1] and b[2] <= a[2] and (a != b).any()) for b in points] for a in points]
    assert sorted(front(df)["trial"]) == [i + 1 for i in range(12) if not any(better[i])]
    cells = sum(
        any(p[0] >= x + 1 and p[1] <= y and p[2] <= z for p in points)
        for x, y, z in itertools.product(range(7), range(7), range(7))
    )  # unit cells [x, x+1] x [y, y+1] x [z, z+1] up to the corner (0 tok/s, 7 GB, 7)
    assert hypervolume(df, (0, 7, 7)) == pytest.approx(cells)


def test_unmeasured_trials_and_the_reference_are_no_members() -> None:
    df = trials((500, 1, 1), (500, 1, 1), (5, 2, 3), status=["ok", "oom", "ok"], origin=["reference", "sampler", "anchor"])
    assert front(df)["trial"].tolist() == [3]


def test_best_under_a_budget() -> None:
    assert best_under(FIVE, 2)["trial"] == 3
    assert best_under(FIVE, 10, max_perplexity=4.5)["trial"] == 5
    with pytest.raises(ResultsError, match=r"no trial stays within 0\.5 GB .* the least memory is 1 GB"):
        best_under(FIVE, 0.5)


def test_evaluation_texts_are_not_mixed() -> None:
    mixed = trials((1, 1, 1), (2, 2, 2), eval_fingerprint=["a" * 16, "b" * 16])
    for function in (front, knee, reference_point):
        with pytest.raises(ResultsError, match="rows of 2 sets of evaluation texts"):
            function(mixed)
    with pytest.raises(ResultsError, match="rows of 2 sets of evaluation texts"):
        shared_texts(trials((1, 1, 1)), trials((1, 1, 1), eval_fingerprint="b" * 16))
    with pytest.raises(ResultsError, match="rows of 2 sets of evaluation texts"):
        reference_point(trials((1, 1, 1)), trials((1, 1, 1), eval_fingerprint="b" * 16))
