"""Time budget: every second of a recorded run is in one line, and the sum is compared with the clock of the sessions."""

from __future__ import annotations

import math
from typing import Any

import pytest
from stored import row

from harness.analysis.runs.hours import LOST, REST, hours, parts

RUN = {"session": "a", "between_s": 2.0, "cool_down_s": 1.0, "waited_s": 0.5, "wall_s": 10.0, "start_s": 1.0,
       "prepare_s": 0.5, "load_s": 2.0, "prefix_s": 1.5, "fill_s": 0.25, "timed_s": 3.0, "score_s": 1.0,
       "end_s": 0.25}  # fmt: skip


def run(trial: int, at: float, **values: Any) -> dict[str, Any]:
    """A run of 10 s after 3.5 s without one, which ended `at` seconds of its session."""
    return row(trial, **{**RUN, "session_s": at, **values})


def test_the_parts_of_a_run_are_its_time() -> None:
    found = parts(run(1, 13.5))
    assert found[REST] == 0.5 and found[LOST] == 0
    assert math.isclose(sum(found.values()), 13.5)
    assert {name: found[name] for name in ("starting", "timing", "between runs")} == {
        "starting": 1.0, "timing": 3.0, "between runs": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("status", ["oom", "timeout", "hang", "crash", "wrong", "infeasible"])
def test_a_run_without_result_is_lost(status: str) -> None:
    found = parts(run(1, 13.5, status=status, lost_s=4.0))
    assert found[LOST] == 14.0 and "timing" not in found
    assert math.isclose(sum(found.values()), 17.5)


@pytest.mark.parametrize(("slept", "rest", "asleep"), [(5.0, 0.5, 5.0), (0.0, 0.5, 0.0)])
def test_sleep_is_a_line_of_its_own(slept: float, rest: float, asleep: float) -> None:
    found = parts(run(1, 0.0, slept_s=slept))
    assert (found[REST], found["asleep"]) == (rest, asleep)


def test_a_run_that_went_on_while_the_search_stood_still_is_not_counted_twice() -> None:
    found = parts(run(1, 0.0, slept_s=20.0, timed_s=13.0))  # 10 of the 20 s were decoding
    assert (found["asleep"], found[REST]) == (10.5, 0.0)


def test_sums_and_the_clock_of_two_sessions() -> None:
    rows = [
        run(1, 13.5), run(1, 27.0, run=1, origin="confirm"),
        row(2, status="dominated", session="a", between_s=0.5, session_s=27.5, saved_s=9.0),
        run(3, 13.5, session="b", status="crash"),
    ]  # fmt: skip
    found = hours(rows)
    assert (found.runs, found.sessions, found.clock_s, found.saved_s) == (3, 2, 41.0, 9.0)
    assert math.isclose(found.sum_s, 41.0) and found.agrees
    assert math.isclose(found.confirming_s, 13.5)
    assert (found.of("timing"), found.of(LOST), found.timed_share) == (6.0, 10.0, 0.2)
    document = found.as_dict()
    assert math.isclose(sum(document["parts_s"].values()), document["sum_s"])
    assert document["confirmation_s"] == found.confirming_s


def test_the_newest_session_continues_after_its_last_row() -> None:
    rows = [run(1, 13.5)]
    found = hours(rows, "a", 20.0)
    assert (found.clock_s, found.of("between runs")) == (20.0, 8.5) and found.agrees
    assert hours(rows, "b", 20.0) == hours(rows, None, None) == hours(rows)


def test_a_sum_that_is_not_the_clock_is_seen() -> None:
    assert hours([run(1, 13.6)]).agrees
    assert not hours([run(1, 30.0)]).agrees
    assert not hours([run(1, 5.0)]).agrees


def test_older_rows_are_not_recorded() -> None:
    old = [row(1, wall_s=10.0), row(2, status="infeasible")]
    found = hours(old)
    assert (found.runs, found.sum_s, found.clock_s, found.timed_share) == (0, 0, 0, None)
    assert (found.unknown_runs, found.unknown_s) == (1, 10.0)
    mixed = hours([*old, run(3, 13.5)])
    assert (mixed.runs, mixed.unknown_s) == (1, 10.0) and mixed.agrees
    nan = {name: math.nan if value is None else value for name, value in row(1, wall_s=10.0).items()}
    assert hours([nan]) == hours(old[:1])  # as pandas gives it


def test_an_engine_that_gives_no_parts_has_the_rest() -> None:
    found = parts(row(1, session="a", wall_s=10.0, start_s=1.0, between_s=0.0))
    assert (found["starting"], found[REST]) == (1.0, 9.0)
