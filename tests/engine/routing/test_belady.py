"""Belady: no sequence of evictions has fewer misses."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.routing.belady import belady_misses


def fewest(chosen: list[list[int]], slots: int, warm: bool) -> int:
    """The fewest misses, by trying every possible cache after every token."""
    experts = sorted(set(itertools.chain(*chosen)))
    cost = {frozenset(c): 0 for c in itertools.combinations(experts, min(slots, len(experts)))} if warm else {frozenset(): 0}
    for ids in chosen:
        after: dict[frozenset[int], int] = {}
        for cached, so_far in cost.items():
            rest = sorted(cached - set(ids))
            for count in range(min(len(rest), slots - len(ids)) + 1):
                for kept in itertools.combinations(rest, count):
                    to = frozenset([*ids, *kept])
                    after[to] = min(after.get(to, 1 << 30), so_far + len(set(ids) - cached))
        cost = after
    return min(cost.values())


@settings(max_examples=80, deadline=None)
@given(
    chosen=st.lists(st.lists(st.integers(0, 5), max_size=2, unique=True), min_size=1, max_size=7),
    slots=st.integers(2, 4),
    warm=st.booleans(),
)
def test_no_policy_misses_less_than_belady(chosen: list[list[int]], slots: int, warm: bool) -> None:
    misses = belady_misses(chosen, slots, warm=warm)
    assert len(misses) == len(chosen) and sum(misses) == fewest(chosen, slots, warm)
