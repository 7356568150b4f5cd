"""Tests of the check of forecasts on this machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.forecast.machine import check
from harness.forecast.machine.check import CHECKPOINT, HEAD, pairs, recorded
from harness.forecast.target import target


def test_a_forecast_stands_beside_its_measurement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a trace of the timed tokens the bytes are those that were read, but for the tokens that the replay counts. The
    machine of the control runs is as fast at the probe as before it, and a fifth slower after the setting."""
    assert check.control(4) > 0
    speeds = iter([10.0, 10.0, 8.0])
    monkeypatch.setattr(check, "control", lambda tokens: next(speeds))
    (pair,) = pairs(target(str(CHECKPOINT), recorded(tmp_path, 8)), (0.5,), (0.5,), 8, 0.0)
    assert pair.row.cached_share == pytest.approx(0.5, rel=0.01) and pair.tok_s > 0
    assert pair.read_gb > 0 and pair.row.read_gb == pytest.approx(pair.read_gb, rel=0.02)
    assert pair.line().startswith("| 0.5 | 0.5 | ") and pair.line().count("|") == HEAD.splitlines()[0].count("|")
    assert pair.state == pytest.approx(0.9)
    assert pair.error(pair.then) == pytest.approx(abs(pair.row.tok_s.middle * pair.state / pair.tok_s - 1), rel=1e-6)
    assert pair.then.high / pair.then.low < pair.row.tok_s.high / pair.row.tok_s.low
