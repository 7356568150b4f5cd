"""Belady: the fewest misses that any eviction policy can have, computed with knowledge of the future.

Source: L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 5 (1966).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def belady_misses(chosen: Sequence[Sequence[int]], slots: int, *, warm: bool = False) -> list[int]:
    """Return each token's misses when the expert whose next use is farthest away is evicted.

    `chosen` are each token's experts in one layer, distinct, at most `slots` of them; all must be cached at the same time.
    `warm`: the slots start with the experts that are used first, which is the best possible start.
    """
    never = len(chosen)
    next_use: dict[int, int] = {}  # after the loop: each expert's first use
    following = []
    for time in range(never - 1, -1, -1):
        following.append([next_use.get(expert, never) for expert in chosen[time]])
        next_use.update(dict.fromkeys(chosen[time], time))
    start = sorted(next_use, key=next_use.__getitem__)[:slots] if warm else []
    cached = set(start)
    farthest = [(-next_use[expert], expert) for expert in start]
    heapq.heapify(farthest)
    misses = []
    for experts, then in zip(chosen, reversed(following), strict=True):
        missing = set(experts) - cached
        for _ in range(len(cached) + len(missing) - slots):  # entries of past or present uses sort behind every victim
            cached.remove(heapq.heappop(farthest)[1])
        cached |= missing
        for expert, time in zip(experts, then, strict=True):
            heapq.heappush(farthest, (-time, expert))
        misses.append(len(missing))
    return misses
