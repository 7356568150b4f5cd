"""Throttle: one bandwidth over all threads, without credit for idle time."""

from __future__ import annotations

import heapq

import pytest

from engine.disk.throttle import Bandwidth


class Clock:
    """The clock of one of several threads; sleeps take `late` seconds too long."""

    def __init__(self, late: float) -> None:
        self.now, self.late = 0.0, late

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late


@pytest.mark.parametrize("gbps", [0.02, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("kib", [4, 1024, 8192])
@pytest.mark.parametrize("threads", [1, 4, 16])
@pytest.mark.parametrize("late", [0.0, 0.001])
def test_bandwidth_is_one_budget_over_all_threads(gbps: float, kib: int, threads: int, late: float) -> None:
    """Threads of a disk that takes no time itself, each with its own time: block by block no sooner than a disk of that
    speed, and no later than one sleep behind it, however often a sleep took too long."""
    clock = Clock(late)
    bandwidth = Bandwidth(gbps, clock, clock.sleep)
    nbytes, blocks, begin = kib * 1024, 500, 3.0
    turns = [(begin, thread) for thread in range(threads)]
    ended = []
    for _ in range(blocks):
        clock.now, thread = heapq.heappop(turns)
        bandwidth.finish(nbytes, begin)
        ended.append(clock.now)
        heapq.heappush(turns, (clock.now, thread))
    for number, end in enumerate(sorted(ended), start=1):
        due = begin + number * nbytes / (gbps * 1e9)
        assert due - 1e-9 <= end <= due + late + 1e-9


def test_idle_time_gives_no_credit() -> None:
    clock = Clock(0.0)
    bandwidth = Bandwidth(0.001, clock, clock.sleep)
    for begin in (1.0, 100.0, 100.5, 1e6):
        clock.now = begin
        for number in range(1, 11):
            bandwidth.finish(10_000, begin)
            assert clock.now == pytest.approx(begin + number * 0.01)


def test_a_disk_slower_than_the_bandwidth_waits_for_nothing() -> None:
    clock = Clock(0.0)
    bandwidth = Bandwidth(1.0, clock, lambda _: pytest.fail("slept"))
    for _ in range(10):
        started = clock.now
        clock.now += 0.1
        bandwidth.finish(1_000_000, started)
