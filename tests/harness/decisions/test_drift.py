"""The sentinel: when it is due, and when its speed counts as drift."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from harness.decisions.drift import check_drift, drifted, due, sentinel_trial
from harness.results.columns import NAMES

START = datetime(2026, 1, 1, tzinfo=UTC)


def run(minute: int, trial: int, origin: str = "sampler", speed: float = 10.0, **values: Any) -> dict[str, Any]:
    given = {"trial": trial, "run": 0, "origin": origin, "status": "ok", "machine": "a", "decode_tok_s": speed,
             "started_at": START + timedelta(minutes=minute), "wall_s": 50.0}  # fmt: skip
    return {**dict.fromkeys(NAMES), **given, **values}


def test_due_after_a_number_of_other_runs() -> None:
    rows = [run(0, 0, "reference"), run(1, 1, "anchor", status="oom"), run(2, 2, "anchor")]
    assert sentinel_trial(rows) == 2
    assert not due(rows, 2, 2)
    rows += [run(3, 3), run(4, 4, status="infeasible", wall_s=0.0)]
    assert not due(rows, 2, 2)  # a pruned setting does not count
    rows.append(run(5, 5))
    assert due(rows, 2, 2)
    assert not due(rows, 2, 0)
    rows.append(run(6, 2, "sentinel", run=1))
    assert not due(rows, 2, 2)
    assert not due(rows, None, 1)


def test_drift_exceeds_noise_and_ignores_other_machines() -> None:
    rows = [run(m, 1, "sentinel", s, run=m) for m, s in enumerate((10.0, 10.4, 9.7))]
    steady, slow, noisy = (run(9, 1, "sentinel", s, run=9) for s in (9.2, 7.0, 7.0))
    check_drift(steady, rows, 0.15, 0.02)
    assert (steady["drift"], steady["drift_since"]) == (pytest.approx(0.92), None)
    check_drift(slow, rows, 0.15, 0.02)
    assert (slow["drift"], slow["drift_since"]) == (pytest.approx(0.7), rows[-1]["started_at"])
    check_drift(noisy, rows, 0.15, 0.2)
    assert noisy["drift_since"] is None
    elsewhere = run(9, 1, "sentinel", 7.0, run=9, machine="b")
    check_drift(elsewhere, rows, 0.15, 0.02)
    assert elsewhere["drift"] is None


def test_a_drift_lasts_until_a_sentinel_run_is_normal() -> None:
    rows = [run(m, 1, "sentinel", 10.0, run=m) for m in range(3)]
    slow = run(5, 1, "sentinel", 6.0, run=5)
    check_drift(slow, rows, 0.15, 0.02)
    rows.append(slow)
    assert drifted(rows)
    back = run(8, 1, "sentinel", 9.9, run=8)
    check_drift(back, rows, 0.15, 0.02)
    assert not drifted([*rows, back])
