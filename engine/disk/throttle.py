"""Throttle: simulates a disk of a given bandwidth, so that reads take as long as on such a disk (`ssd_gbps`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Bandwidth:
    """One simulated disk for all threads. `finish(n, t)` returns at the time when the disk would have delivered `n` more
    bytes, requested at time `t`.

    The disk serves requests one after the other without a pause: if a sleep takes too long, the next read makes up for it.
    Idle time is lost.
    """

    def __init__(
        self, gbps: float | None, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.clock = clock
        self._bytes_per_s = None if gbps is None else gbps * 1e9
        self._sleep = sleep
        self._free_at = 0.0
        self._lock = threading.Lock()

    def finish(self, nbytes: int, requested: float) -> None:
        if self._bytes_per_s is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, requested) + nbytes / self._bytes_per_s
            until = self._free_at
        wait = until - self.clock()
        if wait > 0:
            self._sleep(wait)
