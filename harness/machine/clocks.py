"""Clocks: time awake, time with sleep, a calendar that never jumps, and signs of life that the watcher times itself.

No decision compares the wall clock or the time of a file with a clock of this process. The wall clock may be set at any
moment, and the times of files on a network share are those of its server. A sign of life counts because it differs from the
one before, and the watcher's own clock gives the time since. Both clocks here count from the machine's start on Linux and
macOS, so processes of one start of the machine may compare them.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

LONGEST_STEP_S = 10.0  # between two looks of a watcher; a longer one means that the watcher itself stood still
LEAST_SLEEP_S = 1.0  # two clocks are read one after the other, so a shorter difference is no sleep
SIGN_BYTES = 64  # of a file's content that count as a sign


def awake() -> float:
    """Seconds of a clock that never jumps and stands still while the machine sleeps."""
    return time.monotonic()


def continuous() -> float:
    """Seconds of a clock that never jumps and goes on while the machine sleeps; elsewhere the same as `awake`."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC_RAW)  # mach_continuous_time
    return awake()


class Calendar:
    """UTC as the wall clock gave it at the start, continued by `continuous`: times of one session never jump."""

    def __init__(self) -> None:
        self._start, self._at = datetime.now(UTC), continuous()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=max(0.0, continuous() - self._at))


class SessionClock:
    """Time of the session `name` by `continuous`, so sleep is part of it, and the time since its last run."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex[:16]
        self._begin = self._ran = continuous()

    def s(self) -> float:
        """Seconds since the session began."""
        return max(0.0, continuous() - self._begin)

    def since_run(self) -> float:
        """Seconds since the last run ended, or since the session began."""
        return max(0.0, continuous() - self._ran)

    def ran(self) -> None:
        """A run has ended."""
        self._ran = continuous()

    def take_over(self, seconds: float) -> None:
        """Count the time that an earlier session spent on a run that this one repeats."""
        self._begin -= seconds


class Stopwatch:
    """Time awake since its creation, from looks in short steps.

    `s` does not count what `lost_s` holds: sleep of the machine, and time in which this process did not run itself (SIGSTOP,
    a paused virtual machine), because a run that is watched cannot have shown signs of life meanwhile.
    """

    def __init__(self) -> None:
        self.s = 0.0
        self._stopped_s = 0.0
        self._begin = self._at = awake()
        self._begin_continuous = continuous()

    def look(self) -> float:
        """Count the time since the last look; returns `s`."""
        now = awake()
        step = max(0.0, now - self._at)
        self._at = now
        self.s += min(step, LONGEST_STEP_S)
        self._stopped_s += max(0.0, step - LONGEST_STEP_S)
        return self.s

    @property
    def lost_s(self) -> float:
        """Seconds of sleep or standstill up to now; 0 for less than `LEAST_SLEEP_S`."""
        slept = (continuous() - self._begin_continuous) - (awake() - self._begin)
        lost = max(0.0, slept) + self._stopped_s
        return lost if lost >= LEAST_SLEEP_S else 0.0


class Sign:
    """A file that another process changes as a sign of life: its content, its size or its time of change.

    A filesystem may keep times in steps of seconds, by a wrong clock, or not at all. Only a difference from the last look
    counts, and the clock is the caller's.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, bytes] | None = None
        self._since = 0.0

    def silent_s(self, now: float) -> float:
        """Seconds since the sign last changed, at the time `now` of the caller's clock; 0 before the first sign."""
        found = self._read()
        if found is not None and found != self._seen:
            self._seen, self._since = found, now
        return 0.0 if self._seen is None else max(0.0, now - self._since)

    def _read(self) -> tuple[int, int, bytes] | None:
        try:
            with open(self._path, "rb") as f:
                status = os.fstat(f.fileno())
                return status.st_mtime_ns, status.st_size, f.read(SIGN_BYTES)
        except OSError:
            return None
