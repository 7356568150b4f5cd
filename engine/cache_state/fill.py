"""Fill: reads the experts that have a slot without their bytes, in the order of a plain read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from engine.cache.requests import PoolRequests
from engine.stats import Stats

AT_ONCE = 16  # experts whose reads are queued together; each may need staging memory


@dataclass(frozen=True)
class Filled:
    """What a given state cost: the experts that were read, and their bytes. Direct reads are widened to whole pages."""

    experts: int = 0
    bytes_read: int = 0

    def __add__(self, other: Filled) -> Filled:
        return Filled(self.experts + other.experts, self.bytes_read + other.bytes_read)


def fill(pools: Iterable[PoolRequests], stats: Stats) -> Filled:
    """Read every expert that its pool owes, ascending by file and offset, by the reader's threads. Counts in `stats`.

    The order is that of an expert's first tensor: in a packed store that is the whole record. Raises `ReadError`; the
    experts that were not read then lose their slots.
    """
    pools = list(pools)
    owed = sorted((file, offset, n, expert) for n, pool in enumerate(pools) for file, offset, expert in pool.owed())
    before = stats.bytes_read
    waiting: deque[tuple[int, int]] = deque()
    try:
        for _, _, n, expert in owed:
            pools[n].fetch(expert)
            waiting.append((n, expert))
            if len(waiting) == AT_ONCE:
                _settle(pools, waiting)
        while waiting:
            _settle(pools, waiting)
    except BaseException:
        for pool in pools:
            pool.disown()  # those under way are settled by the next request
        raise
    return Filled(len(owed), stats.bytes_read - before)


def _settle(pools: list[PoolRequests], waiting: deque[tuple[int, int]]) -> None:
    n, expert = waiting.popleft()
    pools[n].settle(np.array([expert]))
