"""Bandwidth: a disk of a given speed, so that reads take as long as they would there (`ssd_gbps`)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Bandwidth:
    """A disk of a given speed, one for all threads: `finish(n, asked)` returns when it would have delivered `n` more bytes
    that it was asked for at `asked`.

    It serves one request after the other, without a pause while there are any: what a sleep takes too long is made up for
    by the next read. Time in which it was asked for nothing is gone.
    """

    def __init__(
        self, gbps: float | None, clock: Callable[[], float] = time.perf_counter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.clock = clock
        self._bytes_per_s = None if gbps is None else gbps * 1e9
        self._sleep = sleep
        self._free_at = 0.0
        self._lock = threading.Lock()

    def finish(self, nbytes: int, asked: float) -> None:
        if self._bytes_per_s is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, asked) + nbytes / self._bytes_per_s
            until = self._free_at
        wait = until - self.clock()
        if wait > 0:
            self._sleep(wait)
