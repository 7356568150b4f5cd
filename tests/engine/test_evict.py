"""One contract for the eviction policy: its limits are LRU and LFU, it is deterministic, and Belady beats it."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np
import pytest

from engine.evict import DecayedFrequency

EXPERTS, SLOTS = 24, 6


def trace(seed: int = 0, tokens: int = 400) -> np.ndarray:
    """Requests with locality: a popularity that drifts, one expert a step."""
    rng = np.random.default_rng(seed)
    hot = rng.permutation(EXPERTS)
    out = []
    for t in range(tokens):
        if t % 60 == 0:
            hot = np.roll(hot, 5)
        out.append(hot[min(int(rng.exponential(4)), EXPERTS - 1)])
    return np.array(out)


def replay(requests: np.ndarray, half_life: float) -> list[bool]:
    """Hit or miss of every request in a cache of SLOTS."""
    policy = DecayedFrequency(EXPERTS, half_life)
    cached: list[int] = []
    hits = []
    for t, expert in enumerate(requests, start=1):
        policy.use(np.array([expert]), np.array([t]))
        hits.append(int(expert) in cached)
        if not hits[-1]:
            if len(cached) == SLOTS:
                cached.pop(policy.coldest(np.array(cached)))
            cached.append(int(expert))
        assert len(cached) <= SLOTS
    return hits


def lru(requests: np.ndarray) -> list[bool]:
    cached: OrderedDict[int, None] = OrderedDict()
    hits = []
    for expert in map(int, requests):
        hits.append(expert in cached)
        cached[expert] = None
        cached.move_to_end(expert)
        if len(cached) > SLOTS:
            cached.popitem(last=False)
    return hits


def lfu(requests: np.ndarray) -> list[bool]:
    counts: Counter[int] = Counter()
    cached: list[int] = []
    hits = []
    for expert in map(int, requests):
        counts[expert] += 1
        hits.append(expert in cached)
        if not hits[-1]:
            if len(cached) == SLOTS:
                cached.remove(min(cached, key=lambda e: (counts[e], cached.index(e))))
            cached.append(expert)
    return hits


def belady(requests: np.ndarray) -> int:
    cached: set[int] = set()
    hits = 0
    for t, expert in enumerate(map(int, requests)):
        hits += expert in cached
        if expert not in cached:
            if len(cached) == SLOTS:
                later = [list(requests[t + 1 :]).index(c) if c in requests[t + 1 :] else len(requests) for c in cached]
                cached.remove(list(cached)[int(np.argmax(later))])
            cached.add(expert)
    return hits


@pytest.mark.parametrize("seed", range(3))
def test_a_short_half_life_is_lru(seed: int) -> None:
    assert replay(trace(seed), 1e-3) == lru(trace(seed))


@pytest.mark.parametrize("seed", range(3))
def test_an_infinite_half_life_is_lfu(seed: int) -> None:
    assert replay(trace(seed), float("inf")) == lfu(trace(seed))


@pytest.mark.parametrize("half_life", [1e-3, 1, 16, 256, float("inf")])
def test_belady_is_at_least_as_good(half_life: float) -> None:
    hits = replay(trace(), half_life)
    assert hits == replay(trace(), half_life)
    assert 0 < sum(hits) <= belady(trace())


def test_many_uses_at_once_count_like_one_by_one() -> None:
    together, singly = DecayedFrequency(8, 4.0), DecayedFrequency(8, 4.0)
    experts, times = np.array([1, 2, 1, 5, 1]), np.array([1, 1, 2, 3, 7])
    together.use(experts, times)
    for e, t in zip(experts, times, strict=True):
        singly.use(np.array([e]), np.array([t]))
    assert np.allclose(together.warmth[[1, 2, 5]], singly.warmth[[1, 2, 5]])
    assert together.warmth[1] == pytest.approx(np.log2(2 ** (1 / 4) + 2 ** (2 / 4) + 2 ** (7 / 4)))
