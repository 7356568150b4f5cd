"""Tests of the common factor: control runs in time, between and after them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from harness.forecast.study.control import LONGEST_H, WALK_SD, controls, smoothed

START = datetime(2026, 1, 1, tzinfo=UTC)


def row(minute: float, tok_s: float, trial: int = 1, run: int = 0, status: str = "ok") -> dict[str, Any]:
    origin = "sentinel" if run else "anchor"
    return {"trial": trial, "run": run, "origin": origin, "status": status, "decode_tok_s": tok_s, "sequence": None,
            "started_at": START + timedelta(minutes=minute)}  # fmt: skip


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def test_less_than_two_control_runs_say_nothing() -> None:
    for rows in ([], [row(0, 10.0)], [row(0, 10.0), row(60, 5.0, run=1, status="crash")]):
        factor = controls(rows).at(at(3))
        assert (factor.value, factor.sd) == (1.0, 0.0)


def test_a_machine_that_slows_down_slows_the_forecast() -> None:
    found = controls([row(0, 10.0), row(60, 10.0, run=1), *(row(60 * h, 5.0, run=h) for h in (2, 3, 4, 5))])
    assert found.at(at(0)).value == pytest.approx(1) and 0.5 < found.at(at(5)).value < 0.7
    assert 0.55 < found.at(at(2.5)).value < 1
    assert found.at(at(5)).sd == 0 and found.at(at(6)).sd == pytest.approx(WALK_SD)
    assert found.at(at(500)).sd == pytest.approx(WALK_SD * LONGEST_H**0.5) and found.at(None).value == 1


def test_noise_of_one_control_run_is_smoothed() -> None:
    hours = np.arange(9) / 10
    logs = np.zeros(9)
    logs[4] = 0.3
    assert np.abs(smoothed(hours, logs)).max() < 0.1


def test_other_settings_are_no_control_runs() -> None:
    found = controls([row(0, 10.0), row(10, 99.0, trial=2), row(20, 10.0, run=1)])
    assert len(found.seconds) == 2 and found.at(at(0.3)).value == pytest.approx(1)
