"""Frames: facts that differ, fronts in numbers, and the fastest settings within a memory limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from two_studies import study

from harness import ResultsError
from harness.compare.frames import budget_frame, fronts_frame, identity_frame
from harness.compare.sides import read_sides


def test_frames_of_three_studies(tmp_path: Path) -> None:
    sides = read_sides([
        study(tmp_path / "a", 0), study(tmp_path / "b", 1, factor=1.5, ssd_gbps=0.3),
        study(tmp_path / "c", 2, eval_fingerprint="c" * 16),
    ], ["first", "second", "third"])  # fmt: skip
    facts = identity_frame(sides)
    assert list(facts) == ["first", "second", "third"]
    assert facts.loc["ssd_gbps"].tolist() == ["unlimited", "0.3", "unlimited"] and "cpu" not in facts.index
    fronts = fronts_frame(sides)
    assert fronts.loc["second", "hypervolume ratio"] > 1 and fronts.loc["second", "verdict"] == "better"
    assert "evaluation texts differ" in fronts.loc["third", "not compared"]
    fastest = budget_frame(sides, 0.13)
    assert (fastest.loc["peak_memory_gb"] <= 0.13).all() and "cache_gb" in fastest.index
    with pytest.raises(ResultsError, match="no trial stays within"):
        budget_frame(sides, 0.001)
