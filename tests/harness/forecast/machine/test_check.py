"""Tests of the check of forecasts on this machine."""

from __future__ import annotations

import pytest

from harness.forecast.machine.check import CHECKPOINT, pairs
from harness.forecast.target import target


def test_a_forecast_stands_beside_its_measurement() -> None:
    (pair,) = pairs(target(str(CHECKPOINT)), (0.5,), (0.5,), 2)
    assert pair.row.cached_share == pytest.approx(0.5, rel=0.01) and pair.tok_s > 0 and pair.read_gb >= 0
    assert pair.error >= 0 and pair.line().startswith("| 0.5 | 0.5 | ") and pair.line().count("|") == 9
