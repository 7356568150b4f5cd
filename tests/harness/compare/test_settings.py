"""Settings: ratios with intervals, recommended settings side by side, and the settings that both studies have."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from two_studies import study

from harness.compare.identity import identity
from harness.compare.settings import BETTER, NOISE, SAME, WORSE, Ratio, changed, pairings, shared
from harness.compare.sides import read_sides


def test_the_verdict_follows_the_interval_and_the_direction() -> None:
    assert Ratio("decode_tok_s", math.log(1.2), 0.05, 30).verdict == BETTER
    assert Ratio("peak_memory_gb", math.log(1.2), 0.05, 30).verdict == WORSE
    assert Ratio("decode_tok_s", math.log(1.05), 0.05, 30).verdict == NOISE
    assert Ratio("perplexity", 0.0, 0.0, 3).verdict == SAME
    assert Ratio("perplexity", 1e-4, 0.0, 3).verdict == WORSE
    assert Ratio("perplexity", 1e-4, 0.0, 3, tolerance=2e-3).verdict == NOISE
    low, high = Ratio("decode_tok_s", 0.0, 0.1, 1000).limits()
    assert (low, high) == pytest.approx((math.exp(-0.196), math.exp(0.196)), rel=1e-3)


def test_a_slower_study_is_slower_in_every_pair(tmp_path: Path) -> None:
    base, other = read_sides([study(tmp_path / "a", 0), study(tmp_path / "b", 1, factor=0.8)])
    known = identity(base, other)
    found = {p.name: p for p in pairings(base, other, known)}
    assert set(found) == {"fastest_lossless", "fastest", "least_memory", "default", "reference"}
    default = found["default"]
    assert default.same_setting and default.ratios["decode_tok_s"].verdict == WORSE
    assert default.ratios["decode_tok_s"].middle == pytest.approx(0.8, rel=0.06)
    assert default.ratios["perplexity"].verdict == SAME
    assert found["fastest_lossless"].base is None and found["fastest_lossless"].ratios == {}  # every setting has fewer bits
    both = shared(base, other, known)
    assert len(both.pairs) == 14 and both.means["decode_tok_s"].middle == pytest.approx(0.8, rel=0.03)
    low, high = both.means["decode_tok_s"].limits()
    assert low < 0.8 < high < 0.85


def test_settings_are_one_if_only_the_limit_of_the_disk_differs(tmp_path: Path) -> None:
    base, other = read_sides([study(tmp_path / "a", 0), study(tmp_path / "b", 1, ssd_gbps=0.3)])
    assert len(shared(base, other, identity(base, other)).pairs) == 14


def test_scatter_between_settings_widens_the_mean(tmp_path: Path) -> None:
    """A disk may change some settings and others not: then the mean is uncertain beyond the noise of the runs."""
    by_cache = lambda values: 0.6 if values["cache_gb"] < 0.015 else 1.0  # noqa: E731
    base, other = read_sides([study(tmp_path / "a", 0), study(tmp_path / "b", 1, factor=by_cache)])
    mean = shared(base, other, identity(base, other)).means["decode_tok_s"]
    assert mean.se > 0.03 and mean.degrees == 13


def test_the_knobs_that_differ_are_named(tmp_path: Path) -> None:
    (side,) = read_sides([study(tmp_path / "a", 0)])
    points = side.measured
    other = points.iloc[0].copy()
    assert changed(points.iloc[0], other) == ""
    other["read_threads"] = 7
    other["ssd_gbps"] = 0.3
    assert changed(points.iloc[0], other).endswith(" -> 7") and "ssd_gbps" not in changed(points.iloc[0], other)
    other = points.iloc[0].copy()
    other["removed_knobs"] = "lowbit_share=0.3"
    assert changed(points.iloc[0], other) == "removed knobs differ"
