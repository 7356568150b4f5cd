"""Findings: a bound is found on a known response, and nothing on few points."""

from __future__ import annotations

from synthetic import SPACE, frame, searched, streamed

from harness.analysis.findings import MIN_POINTS, findings_of
from harness.results.metrics import OBJECTIVES


def test_a_known_bound_is_found_with_its_evidence() -> None:
    found = findings_of(frame(searched(1, streamed)), SPACE, OBJECTIVES)
    bounds = {(f.knob, f.side) for f in found.bounds}
    assert ("cache_gb", "high") in bounds
    assert all("still improves there" in f.evidence for f in found.bounds)
    assert found.best["cache_gb"] is not None


def test_few_points_give_importance_only() -> None:
    found = findings_of(frame(searched(0, streamed, MIN_POINTS - 1)), SPACE, OBJECTIVES)
    assert not (found.never or found.bounds or found.empty or found.clear) and found.importance.points == MIN_POINTS - 1
