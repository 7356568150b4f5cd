"""Clocks: jumps of the wall clock, sleep, and files on shares with any clock."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pytest

from harness.machine import clocks
from harness.machine.clocks import LONGEST_STEP_S, Calendar, SessionClock, Sign, Stopwatch


class Clocks:
    """Clocks that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.awake = self.continuous = 100.0
        monkeypatch.setattr(clocks, "awake", lambda: self.awake)
        monkeypatch.setattr(clocks, "continuous", lambda: self.continuous)

    def pass_s(self, seconds: float, slept: float = 0.0) -> None:
        self.awake += seconds
        self.continuous += seconds + slept


@pytest.fixture
def set_clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


def test_the_clocks_go_on_and_the_continuous_one_counts_sleep_too() -> None:
    before = clocks.awake(), clocks.continuous()
    time.sleep(0.01)
    after = clocks.awake(), clocks.continuous()
    assert 0.01 <= after[0] - before[0] <= after[1] - before[1] + 0.005
    assert clocks.continuous() >= clocks.awake() - 1  # both from the machine's start


def test_sleep_and_standstill_are_not_time_of_a_run(set_clocks: Clocks) -> None:
    watch = Stopwatch()
    for _ in range(30):
        set_clocks.pass_s(0.1)
        watch.look()
    assert (watch.s, watch.lost_s) == (pytest.approx(3), 0)
    set_clocks.pass_s(0.1, slept=3600)
    assert (watch.look(), watch.lost_s) == (pytest.approx(3.1), pytest.approx(3600))
    set_clocks.pass_s(500 + LONGEST_STEP_S)  # this process was stopped, or its virtual machine
    assert (watch.look(), watch.lost_s) == (pytest.approx(3.1 + LONGEST_STEP_S), pytest.approx(4100))
    set_clocks.pass_s(-50)  # a clock that should never go back
    assert watch.look() == pytest.approx(3.1 + LONGEST_STEP_S)


@pytest.mark.parametrize("jump_s", [-366 * 86400, -3600, 3600, 366 * 86400])
def test_the_calendar_of_a_session_does_not_jump(monkeypatch: pytest.MonkeyPatch, set_clocks: Clocks, jump_s: float) -> None:
    calendar = Calendar()
    first = calendar.now()
    real = time.time()
    monkeypatch.setattr(time, "time", lambda: real + jump_s)
    set_clocks.pass_s(60, slept=40)
    assert calendar.now() - first == timedelta(seconds=100)


WRITERS = {
    "right times": lambda path, n: path.write_text(str(n)),
    "two hours slow": lambda path, n: (path.write_text("x"), os.utime(path, (1e9 - 7200 + n,) * 2)),
    "a clock that goes back": lambda path, n: (path.write_text("x"), os.utime(path, (2e9 - 3600 * n,) * 2)),
    "steps of two seconds": lambda path, n: (path.write_text(str(n)), os.utime(path, (1e9 + n // 2 * 2,) * 2)),
    "no times at all": lambda path, n: (path.write_text(str(n % 10)), os.utime(path, (0, 0))),
    "a size that grows": lambda path, n: (path.write_text("x" * (100 + n)), os.utime(path, (0, 0))),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_change_is_a_sign_of_life_and_silence_is_timed_by_the_watcher(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "beat"
    sign = Sign(path)
    assert sign.silent_s(1000.0) == 0.0  # no sign yet
    for n in range(1, 9):
        WRITERS[kind](path, n)
        assert sign.silent_s(1000.0 + 10 * n) == 0.0
        assert sign.silent_s(1000.0 + 10 * n + 7) == 7.0
    path.unlink()  # a share that went away is silence
    assert sign.silent_s(2000.0) == 920.0


def test_a_session_counts_sleep_and_the_time_since_its_last_run(set_clocks: Clocks) -> None:
    clock = SessionClock()
    assert (clock.s(), clock.since_run()) == (0, 0) and clock.name != SessionClock().name
    set_clocks.pass_s(5.0, slept=2.0)
    clock.ran()
    set_clocks.pass_s(1.0)
    assert (clock.s(), clock.since_run()) == (8.0, 1.0)
    clock.take_over(10.0)
    assert (clock.s(), clock.since_run()) == (18.0, 1.0)
