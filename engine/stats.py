"""Stats: what the engine counted since it was loaded or since `reset()`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Stats:
    """Counters and times of one engine.

    A request is one distinct expert of one layer for one forward pass (decoding: one token). It is a hit if its slot was
    taken when it was asked for, even if a prefetch is still filling it; the wait for that is in `io_ms`.
    """

    tokens: int = 0
    hits: int = 0
    misses: int = 0
    reads: int = 0
    bytes_read: int = 0  # as they crossed the bus: direct reads are widened to whole pages
    io_ms: float = 0.0  # the main thread waiting for reads
    sync_ms: float = 0.0  # the main thread waiting for the routers' choice, the compute before it included
    quantize_ms: float = 0.0  # bringing experts to another width
    prefetch_issued: int = 0
    prefetch_useful: int = 0  # of those issued, the ones used before they were pushed out
    windows: int = 0  # checks of the routers' choice over several layers (sync_window)
    passes: int = 0  # passes over those windows; one each if nothing was missing
    void_layers: int = 0  # layers computed in vain: behind the first that missed an expert
    foreseen: int = 0  # experts that the first void pass showed for layers behind the first miss, and that were used
    foreseen_of: int = 0  # all experts that those layers used

    @property
    def hit_rate(self) -> float | None:
        """Hits as a share of requests; None before the first request (everything resident: always)."""
        requests = self.hits + self.misses
        return self.hits / requests if requests else None

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "hit_rate": self.hit_rate}

    def reset(self) -> None:
        for f in dataclasses.fields(self):
            setattr(self, f.name, f.default)

    def add(self, other: Stats, *, since: Stats) -> None:
        """Add what `other` has counted beyond `since`, an earlier copy of it."""
        for f in dataclasses.fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name) - getattr(since, f.name))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the milliseconds spent inside to the counter `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + (time.perf_counter() - started) * 1e3)
