"""Tests of the time of a token."""

from __future__ import annotations

import pytest

from harness.forecast.speed import Rates, Work

WORK = Work(weights_gb=20, missed_gb=(5.0, 10.0), missed_layers=(30.0, 50.0), layers=60, all_layers=61)


def test_parts_add_up() -> None:
    rates = Rates(gbps=200, disk_gbps=5, layer_ms=1, sync_ms=0.1, missed_ms=0.2, rest_ms=3)
    parts = {"compute": 100 + 61 + 3, "disk": 1000, "sync": 6, "misses": 6}
    assert rates.parts_ms(WORK, 5.0, 30.0) == pytest.approx(parts)
    assert rates.by_world(WORK) == pytest.approx([1176, 2180])


def test_the_middle_lies_between_the_worlds() -> None:
    parts = Rates(gbps=200, disk_gbps=5).middle(WORK)
    assert sum(parts.values()) == pytest.approx((1100 * 2100) ** 0.5) and parts["sync"] == 0
    assert Rates(gbps=200, disk_gbps=5, missed_ms=0.2).middle(WORK)["misses"] == pytest.approx(8)
