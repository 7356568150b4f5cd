"""Known truth: its front, its optimum inside the space, and the noise of its measurements."""

from __future__ import annotations

import numpy as np
import pytest

from harness.analysis.pareto import nondominated
from harness.bench import truth


def test_hypervolume_and_front_of_the_truth() -> None:
    points = np.array([[-2.0, 10.0, 6.0], [-1.0, 10.0, 6.0], [-1.0, 5.0, 8.0], [-2.0, 10.0, 6.0]])
    assert nondominated(points).tolist() == [True, False, True, True]
    both = 2 * 62 * 4 + 1 * 5 * 2
    assert truth.hypervolume(points) == pytest.approx(both)


def test_the_truth_has_an_optimum_inside_and_noise_around_it() -> None:
    base = {"cache_gb": 30.0, "expert_bits": 4, "prefetch": "off", "io_mode": "direct", "read_threads": 8}
    speed = {gb: truth.truth({**base, "cache_gb": gb})["decode_tok_s"] for gb in (8.0, 45.0, 60.0)}
    assert speed[45.0] > speed[8.0] and speed[45.0] > speed[60.0]
    rng = np.random.default_rng(0)
    seen = [truth.measure(base, rng, noise=0.1, outliers=0)["decode_tok_s"] for _ in range(400)]
    assert np.median(seen) == pytest.approx(truth.truth(base)["decode_tok_s"], rel=0.03)
    assert np.std(np.log(seen)) == pytest.approx(0.1, rel=0.15)
