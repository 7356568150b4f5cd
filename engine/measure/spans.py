"""Spans: seconds of a run by part, so that a row says where its time went.

An inner span's time is not part of the outer one's, so the parts of a run never count a second twice.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

PREFIX, FILL = "prefix", "fill"  # states of the prompts; experts and warm-up tokens before the clock starts


class Spans:
    """Seconds by part since the creation or the last `take`."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._inner: list[float] = []  # of each open span: seconds of the spans inside it

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as that of the part `name`, without that of spans inside it."""
        begin = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = time.perf_counter() - begin
            self._seconds[name] = self._seconds.get(name, 0.0) + whole - self._inner.pop()
            if self._inner:
                self._inner[-1] += whole

    def take(self) -> dict[str, float]:
        """Return the seconds by part and start again from none."""
        found, self._seconds = self._seconds, {}
        return found
