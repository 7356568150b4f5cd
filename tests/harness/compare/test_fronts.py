"""Fronts: hypervolume ratio with its interval, coverage beyond noise, and fronts that are not comparable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from two_studies import study

from harness.analysis.hypervolume import hypervolume, reference_point
from harness.compare.fronts import compare_fronts
from harness.compare.identity import identity
from harness.compare.settings import BETTER, NOISE
from harness.compare.sides import Side, read_sides


def two(tmp_path: Path, **other: Any) -> tuple[Side, Side]:
    base, second = read_sides([study(tmp_path / "a", 0), study(tmp_path / "b", 1, **other)])
    return base, second


def test_a_faster_study_beats_the_front(tmp_path: Path) -> None:
    base, other = two(tmp_path, factor=1.5)
    found = compare_fronts(base, other, identity(base, other))
    assert found.verdict == BETTER and 1 < found.low < found.ratio < found.high
    assert set(found.base_beaten) == set(base.front.index) and found.other_beaten == ()
    corner = reference_point(base.df, other.df)
    assert found.corner == corner
    assert found.volumes == pytest.approx((hypervolume(base.df, corner), hypervolume(other.df, corner)))


def test_equal_studies_do_not_beat_each_other(tmp_path: Path) -> None:
    base, other = two(tmp_path)
    found = compare_fronts(base, other, identity(base, other))
    assert found.verdict == NOISE and found.base_beaten == found.other_beaten == ()


def test_fronts_of_other_texts_or_objectives_are_not_compared(tmp_path: Path) -> None:
    base, other = two(tmp_path, eval_fingerprint="c" * 16)
    assert "the evaluation texts differ" in compare_fronts(base, other, identity(base, other)).reason
    third = read_sides([study(tmp_path / "c", 1, objectives="decode_tok_s,peak_memory_gb")])[0]
    assert "the objectives differ" in compare_fronts(base, third, identity(base, third)).reason


def test_a_front_without_a_speed_is_beaten_by_less_memory(tmp_path: Path) -> None:
    names = "peak_memory_gb,perplexity"
    base, other = read_sides([
        study(tmp_path / "a", 0, objectives=names), study(tmp_path / "b", 1, objectives=names, memory=0.8)
    ])  # fmt: skip
    found = compare_fronts(base, other, identity(base, other))
    assert set(found.base_beaten) == set(base.front.index) and found.other_beaten == ()
