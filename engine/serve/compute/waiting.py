"""Waiting requests: a queue with a limit, and the number of requests that compute.

mlx-lm's batch would take every request at once. Here it gets only as many as may compute; the others wait before it and need
no memory but for their text. A request with a seed computes alone, so that its random numbers and its rounding do not depend
on other requests.
"""

from __future__ import annotations

import time
from collections import deque
from threading import Condition

from engine.serve.errors import RequestError

from .job import Job

RETRY_SECONDS = 5  # offered to a client before any request has finished


class WaitingRequests:
    """First in, first out. `parallel` requests compute at once; past `limit` waiting ones, `put` refuses."""

    def __init__(self, parallel: int, limit: int) -> None:
        self.parallel = parallel
        self.limit = limit
        self.closed = False
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._changed = Condition()
        self._seconds = float(RETRY_SECONDS)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def put(self, job: Job) -> None:
        """Append a job. Raises `RequestError`: 429 if the queue is full, 503 if the server stops."""
        with self._changed:
            if self.closed:
                raise RequestError(503, "the server is stopping; send the request to another one", code="stopping")
            self._drop_cancelled()
            if len(self._running) + len(self._waiting) >= self.parallel + self.limit:
                after = max(1, round(self._seconds * (len(self._waiting) + 1) / self.parallel))
                raise RequestError(
                    429,
                    f"{len(self._running)} requests compute and {len(self._waiting)} wait, and --queue is {self.limit}; "
                    f"try again in {after} s",
                    code="queue_full",
                    headers={"Retry-After": str(after)},
                )
            self._waiting.append(job)
            self._changed.notify_all()

    def next(self, timeout: float | None) -> Job | None:
        """The next job that may compute, or None after `timeout` seconds; without a timeout at once."""
        deadline = time.monotonic() + (timeout or 0)
        with self._changed:
            while True:
                self._drop_cancelled()
                if self._waiting and self._admits(self._waiting[0]):
                    job = self._waiting.popleft()
                    self._running.append(job)
                    for one in self._running:
                        one.shared = one.shared or len(self._running) > 1
                    job.on_finish = self._release
                    return job
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return None

    def close(self) -> list[Job]:
        """Refuse all further jobs; returns those that were waiting."""
        with self._changed:
            self.closed = True
            left = [*self._waiting]
            self._waiting.clear()
            self._changed.notify_all()
            return left

    def computing(self) -> list[Job]:
        """The jobs that compute now."""
        with self._changed:
            return [*self._running]

    def _release(self, job: Job) -> None:
        with self._changed:
            if job in self._running:
                self._running.remove(job)
                figures = job.figures()
                self._seconds += 0.3 * (figures.prompt_s + figures.decode_s - self._seconds)
            self._changed.notify_all()

    def _admits(self, job: Job) -> bool:
        if job.alone or any(one.alone for one in self._running):
            return not self._running
        return len(self._running) < self.parallel

    def _drop_cancelled(self) -> None:
        self._waiting = deque(job for job in self._waiting if not job.cancelled)
