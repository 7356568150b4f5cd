"""Timeline: the order of runs and their times, whatever the wall clock did."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pytest

from harness.analysis.estimates import suspect_runs
from harness.analysis.runs.timeline import LONGEST_GAP_S, order, since_first

START = datetime(2026, 1, 1, tzinfo=UTC)


def rows(jump_s: float, count: int = 6, at: int = 3, **more: Any) -> list[dict[str, Any]]:
    """Runs of 30 s, one a minute; the clock jumps before run `at`."""
    times = [START + timedelta(seconds=60 * i + (jump_s if i >= at else 0)) for i in range(count)]
    return [
        {"sequence": i + 1, "started_at": t, "wall_s": 30.0, "machine": "m", "trial": i, "suspect": None,
         "drift_since": None, "drift_sequence": None, **more}
        for i, t in enumerate(times)
    ]  # fmt: skip


JUMPS = [0, -30, -3600, 3600, -400 * 86400, 400 * 86400]


@pytest.mark.parametrize("jump_s", JUMPS)
def test_no_time_is_negative_and_the_order_is_that_of_the_runs(jump_s: float) -> None:
    some = rows(jump_s)
    backwards = some[::-1]
    assert [r["trial"] for r in sorted(backwards, key=order)] == [0, 1, 2, 3, 4, 5]
    ordered, seconds = since_first(pd.DataFrame(some).sample(frac=1, random_state=1))
    assert ordered["trial"].tolist() == [0, 1, 2, 3, 4, 5]
    assert seconds.iloc[0] == 0 and (seconds.diff().dropna() >= 30).all()
    assert seconds.iloc[-1] <= 5 * 60 + LONGEST_GAP_S
    if not jump_s:
        assert seconds.tolist() == [0, 60, 120, 180, 240, 300]


@pytest.mark.parametrize("jump_s", JUMPS)
def test_drift_marks_the_runs_between_two_sentinels(jump_s: float) -> None:
    some = rows(jump_s)
    some[4] |= {"drift_since": some[1]["started_at"], "drift_sequence": 2}
    assert suspect_runs(pd.DataFrame(some)).tolist() == [False, True, True, True, True, False]


def test_rows_of_older_versions_come_first_and_machines_are_apart() -> None:
    old = [r | {"sequence": None} for r in rows(0, 2)]
    new = [r | {"started_at": START - timedelta(days=9)} for r in rows(0, 2)]
    assert sorted([*new, *old], key=order) == [*old, *new]
    _, seconds = since_first(pd.DataFrame([*rows(0, 3), *rows(0, 3, machine="n")]))
    assert sorted(seconds) == [0, 0, 60, 60, 120, 120]
    none = pd.DataFrame({"started_at": pd.to_datetime([None], utc=True)})
    assert since_first(none)[0].empty and since_first(none)[1].empty
