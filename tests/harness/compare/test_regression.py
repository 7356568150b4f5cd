"""Regression: a known one is found, a small one and noise are not, and what cannot be judged is said."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from two_studies import study

from harness import ResultsError
from harness.compare.identity import identity
from harness.compare.regression import Regression, is_regression, regressions, share
from harness.compare.settings import Ratio, pairings, shared
from harness.compare.sides import read_sides


def judge(folder: Path, first: dict[str, Any], second: dict[str, Any], limit: float = 0.05) -> list[Regression]:
    base, other = read_sides([study(folder / "a", **first), study(folder / "b", **{"seed": 1} | second)])
    known = identity(base, other)
    return regressions(base, other, known, pairings(base, other, known), shared(base, other, known), limit)


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("5 %", 0.05), ("0.05", 0.05), ("0", 0.0), ("12.5%", 0.125)])
def test_the_limit_is_a_share(text: str, value: float) -> None:
    assert share(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "-1%", "100%", "nan", "five", ""])
def test_a_limit_that_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        share(text)


def test_a_ratio_is_a_regression_beyond_the_limit_and_beyond_noise() -> None:
    slower = lambda by, se: Ratio("decode_tok_s", math.log(1 - by), se, 30)  # noqa: E731
    assert is_regression(slower(0.10, 0.02), 0.05, 1)
    assert not is_regression(slower(0.04, 0.005), 0.05, 1)  # sure, but within the limit
    assert not is_regression(slower(0.10, 0.06), 0.05, 1)  # beyond the limit, but noise
    assert is_regression(slower(0.10, 0.045), 0.05, 1) and not is_regression(slower(0.10, 0.045), 0.05, 50)
    assert is_regression(Ratio("peak_memory_gb", math.log(1.1), 0.01, 30), 0.05, 1)
    assert not is_regression(Ratio("peak_memory_gb", math.log(0.9), 0.01, 30), 0.05, 1)


def test_ten_per_cent_are_found_and_one_is_not(tmp_path: Path) -> None:
    found = judge(tmp_path / "ten", {}, {"factor": 0.9})
    assert {"default", "the settings in both"} <= {r.name for r in found} and {r.metric for r in found} == {"decode_tok_s"}
    assert "b: tok/s of default is " in str(found[0]) or "b: tok/s of fastest is " in str(found[0])
    assert judge(tmp_path / "one", {}, {"factor": 0.99}) == []
    assert judge(tmp_path / "faster", {}, {"factor": 1.3}) == []


def test_memory_and_perplexity_are_judged_too(tmp_path: Path) -> None:
    assert {r.metric for r in judge(tmp_path, {}, {"memory": 1.1})} == {"peak_memory_gb"}


def test_equal_studies_rarely_fail(tmp_path: Path) -> None:
    """Noise of 8 %, so that the recommended settings differ by luck."""
    failed = [n for n in range(5) if judge(
        tmp_path / str(n), {"seed": 2 * n, "settings": n, "noise": 0.08}, {"seed": 2 * n + 1, "settings": n, "noise": 0.08}
    )]  # fmt: skip
    assert not failed


def test_what_is_not_comparable_is_not_judged(tmp_path: Path) -> None:
    worse = {"factor": 0.8, "memory": 1.2}
    assert {r.metric for r in judge(tmp_path / "p", {}, {**worse, "timed_tokens": 64})} == {"peak_memory_gb"}
    one = {"objectives": "decode_tok_s", "peak_memory_gb": None, "perplexity": None}
    with pytest.raises(ResultsError, match="b cannot be judged against a: the protocol differs"):
        judge(tmp_path / "s", one, {**one, "timed_tokens": 64})


def test_a_rule_that_no_setting_meets_any_more_is_a_regression(tmp_path: Path) -> None:
    found = judge(tmp_path, {"expert_bits": None}, {})
    assert [str(r) for r in found if r.ratio is None] == ["b: fastest_lossless is met by no setting any more"]
