"""Layer pools: the slot pools of one layer, and the rules by which a pass requests its experts from them.

A choice is requested in batches, since a pool may hold fewer experts than a prompt's chunk needs. The rules are here and
compute nothing, because a replay of recorded passes (`engine.replay`) follows the same ones.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from .requests import PoolRequests

PoolT = TypeVar("PoolT", bound=PoolRequests)


def nothing() -> None:
    """Do nothing between the requests and the wait for them."""


class LayerPools(Generic[PoolT]):
    """The slot pools of one layer, one for each width. `slot_of` is int32 [experts], -1: not cached; the pools share it.

    `complete`: every expert has a slot, so nothing is ever missing. `pool_of` is the number of each expert's pool.
    """

    def __init__(self, pools: list[PoolT], slot_of: np.ndarray) -> None:
        self.pools = pools
        self.slot_of = slot_of
        self.complete = all(pool.holds_all for pool in pools)
        self.pool_of = np.zeros(len(slot_of), np.int8)
        for number, pool in enumerate(pools):
            self.pool_of[pool.members] = number

    def request(self, experts: np.ndarray, *, speculative: bool) -> None:
        """Queue the reads of those of `experts` (distinct, at most top-k) that are not cached."""
        for pool, members in self._by_pool(experts):
            pool.request(members, speculative=speculative)

    def withdraw(self, experts: np.ndarray) -> None:
        """Withdraw the speculative reads of all but `experts` that have not begun."""
        for pool in self.pools:
            pool.withdraw(experts)

    def guess(self, experts: np.ndarray, time: int) -> None:
        """Queue speculative reads of `experts` for the token number `time`."""
        for pool, members in self._by_pool(experts):
            pool.guess(members, time)

    def guessed(self) -> set[int]:
        """Return the experts that were read speculatively and not used yet."""
        return {expert for pool in self.pools for expert in pool.guessed}

    def batches(self, used: np.ndarray) -> list[tuple[PoolT, np.ndarray]]:
        """Split the experts `used` (repeats allowed) by pool and by what a pool can hold at once, cached ones first.

        If a pool cannot hold all of them, a batch takes half of the slots that are not pinned, so that the next batch can be
        read meanwhile.
        """
        found = []
        for pool, members in self._by_pool(np.unique(used)):
            wanted = members[np.argsort(self.slot_of[members] < 0, kind="stable")]
            size = pool.slots if len(wanted) <= pool.loose else max(1, pool.loose // 2)
            found += [(pool, wanted[begin : begin + size]) for begin in range(0, len(wanted), size)]
        return found

    def arrivals(
        self, batches: Sequence[tuple[PoolT, np.ndarray]], *, one_token: bool, meanwhile: Callable[[], None] = nothing
    ) -> Iterator[tuple[PoolT, np.ndarray]]:
        """Yield each batch when its experts are in their slots. They stay there until the next batch is taken.

        All batches are requested together if they fit, and `meanwhile` runs once before the first wait. Otherwise a batch is
        requested while the one before it is read, and `meanwhile` runs at the end. `one_token`: the experts of one token,
        which always fit.
        """
        if len(batches) == 1 or (one_token and len(batches) == len(self.pools)):
            for pool, experts in batches:
                pool.request(experts)
            meanwhile()
            for pool, experts in batches:
                pool.settle(experts)
                yield pool, experts
            return
        for (pool, experts), following in itertools.zip_longest(batches, batches[1:]):
            pool.request(experts)
            if following is not None:
                next_pool, next_experts = following
                if next_pool is not pool or len(experts) + len(next_experts) <= pool.loose:
                    next_pool.request(next_experts, keep=experts)
            pool.settle(experts)
            yield pool, experts
        meanwhile()

    def _by_pool(self, experts: np.ndarray) -> Iterator[tuple[PoolT, np.ndarray]]:
        if len(self.pools) == 1:
            yield self.pools[0], experts
            return
        for number, pool in enumerate(self.pools):
            yield pool, experts[self.pool_of[experts] == number]
