"""Tests of candidates: which settings are looked at, and which win by arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from engine.errors import HeadraceError
from harness.forecast.study import candidates
from harness.forecast.study.candidates import Candidate, drawn, sample, winners
from harness.forecast.study.fit import Speed
from harness.space.parse import space_from_config

SPACE = space_from_config({"cache_gb": [0.01, 0.04], "expert_bits": {"type": "ordinal", "values": [4, None]}}, {})


def speed(values: Mapping[str, Any]) -> Speed:
    tok_s = 1000 * (values["cache_gb"] or 1) * (2 if values.get("expert_bits") else 1)
    return Speed(tok_s, tok_s * 0.8, tok_s * 1.2)


def candidate(cache_gb: float, bits: int | None, memory_gb: float) -> Candidate:
    values = {"cache_gb": cache_gb, "expert_bits": bits}
    return Candidate(values, speed(values), memory_gb)


def test_settings_that_cannot_run_or_be_replayed_are_left_out() -> None:
    def forbidden(values: Mapping[str, Any]) -> tuple[str | None, float]:
        return ("too large" if values["cache_gb"] > 0.03 else None), values["cache_gb"]

    def replayed(values: Mapping[str, Any]) -> Speed:
        if values["cache_gb"] < 0.015:
            raise HeadraceError("no replay")
        return speed(values)

    first = [{"cache_gb": 0.02, "expert_bits": None}] * 2
    found = sample(SPACE, first, 0, forbidden, replayed)
    assert found[0].values == first[0] and 10 < len(found) < 100
    assert all(0.015 <= one.values["cache_gb"] <= 0.03 for one in found)


def test_a_slow_machine_looks_at_few_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "LONGEST_S", -1.0)
    first = [{"cache_gb": gb} for gb in (0.02, 0.03, 0.04, 0.01)]
    assert [one.values for one in sample(SPACE, first, 0, lambda values: (None, 1.0), speed)] == first[: candidates.LEAST]


def test_equal_seeds_draw_equal_settings() -> None:
    one, other, third = ([*drawn(SPACE, seed)] for seed in (3, 3, 4))
    assert one == other != third and len(one) == candidates.MOST


def test_winners_by_arithmetic() -> None:
    large, small = candidate(0.04, None, 1.0), candidate(0.01, None, 0.2)
    lossy, middle = candidate(0.04, 4, 0.9), candidate(0.02, 4, 0.4)
    found = dict(winners([large, small, lossy, middle]))
    assert found == {
        "fastest without loss": large, "fastest": lossy, "fastest in 0.5 of its memory": middle,
        "fastest in 0.25 of its memory": small,
    }  # fmt: skip
    assert not small.lossy and lossy.lossy


def test_equal_speeds_are_decided_by_memory() -> None:
    two = [Candidate({"cache_gb": 1.0}, Speed(100.0, 90, 110), 2.0), Candidate({"cache_gb": 0.9}, Speed(99.5, 90, 110), 1.0)]
    assert winners(two) == [("fastest without loss", two[1])] and winners([]) == []
