"""The series for Student's t against the published tables."""

from __future__ import annotations

from statistics import NormalDist

import pytest

from harness.numerics.student_t import t_quantile


@pytest.mark.parametrize(
    ("p", "degrees", "expected"),
    [
        (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 20, 2.086), (0.95, 5, 2.015), (0.99, 5, 3.365), (0.999, 5, 5.893),
        (0.995, 11, 3.106), (0.95, 30, 1.697),
    ],
)  # fmt: skip
def test_quantiles_are_those_of_the_tables(p: float, degrees: int, expected: float) -> None:
    assert t_quantile(p, degrees) == pytest.approx(expected, rel=0.01)


def test_quantiles_fall_to_the_normal_ones() -> None:
    assert t_quantile(0.975, 3.0) > t_quantile(0.975, 3.5) > t_quantile(0.975, 4.0)
    assert t_quantile(0.975, 1e9) == pytest.approx(NormalDist().inv_cdf(0.975))
