"""Contract of every eviction setting: its limits are LRU and LFU, it is deterministic, and Belady is never worse."""

from __future__ import annotations

from collections import Counter, OrderedDict

import numpy as np
import pytest

from engine.cache.eviction import NO_EXPERTS, DecayedFrequency, SlotTable

EXPERTS, SLOTS = 24, 6


def trace(seed: int = 0, tokens: int = 400) -> np.ndarray:
    """Requests with locality: drifting popularity, one expert per step."""
    rng = np.random.default_rng(seed)
    hot = rng.permutation(EXPERTS)
    out = []
    for t in range(tokens):
        if t % 60 == 0:
            hot = np.roll(hot, 5)
        out.append(hot[min(int(rng.exponential(4)), EXPERTS - 1)])
    return np.array(out)


def replay(requests: np.ndarray, half_life: float, pinned: np.ndarray = NO_EXPERTS, guesses: int = 0) -> list[bool]:
    """Hit or miss of every request with SLOTS slots; before each, `guesses` random experts are predicted."""
    rng = np.random.default_rng(5)
    policy = DecayedFrequency(EXPERTS, half_life)
    table = SlotTable(np.arange(EXPERTS), SLOTS, policy, np.full(EXPERTS, -1, np.int32), pinned)
    table.demand(pinned, pinned)
    hits = []
    for t, expert in enumerate(map(int, requests), start=1):
        told = rng.choice(EXPERTS, guesses, replace=False)
        for guess in told:
            if table.slot_of[guess] < 0:
                before = policy.warmth.copy()
                placed = table.guess(int(guess), t, told)
                if placed is not None and placed[1] >= 0:
                    assert before[placed[1]] < policy.if_used(int(guess), t), "pushed out a warmer expert"
                    assert placed[1] not in told, "pushed out another guess"
        policy.use(np.array([expert]), np.array([t]))
        hits.append(bool(table.slot_of[expert] >= 0))
        table.demand(np.array([expert]), np.array([expert]))
        check_books(table, pinned, expert)
    return hits


def check_books(table: SlotTable, pinned: np.ndarray, expert: int) -> None:
    """Invariants after every request."""
    cached = np.flatnonzero(table.slot_of >= 0)
    assert len(cached) <= SLOTS and expert in cached and set(pinned) <= set(cached)
    slots = table.slot_of[cached]
    assert len(set(slots.tolist())) == len(slots) and slots.max() < SLOTS
    assert (table._expert_in[slots] == cached).all()


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
    """Among equals, the expert in the first slot is evicted."""
    counts: Counter[int] = Counter()
    slots: list[int] = []
    hits = []
    for expert in map(int, requests):
        counts[expert] += 1
        hits.append(expert in slots)
        if not hits[-1] and len(slots) < SLOTS:
            slots.append(expert)
        elif not hits[-1]:
            slots[slots.index(min(slots, key=lambda e: counts[e]))] = expert
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


@pytest.mark.parametrize("guesses", [0, 3])
@pytest.mark.parametrize("pinned", [[], [3, 17]])
@pytest.mark.parametrize("half_life", [1e-3, 1, 16, 256, float("inf")])
def test_the_contract(half_life: float, pinned: list[int], guesses: int) -> None:
    """The books are right after every request, the same run gives the same hits, and no setting beats Belady (who does
    not guess: with guesses his figure is no bound)."""
    hits = replay(trace(), half_life, np.array(pinned, int), guesses)
    assert hits == replay(trace(), half_life, np.array(pinned, int), guesses)
    assert sum(hits) > 0 and (guesses or sum(hits) <= belady(trace()) + len(pinned))


def test_a_guess_that_failed_is_no_guess_any_more() -> None:
    """Otherwise its expert, read on a later demand, would count as a useful prediction."""
    table = SlotTable(np.arange(EXPERTS), SLOTS, DecayedFrequency(EXPERTS, 1.0), np.full(EXPERTS, -1, np.int32))
    assert table.guess(3, 1, NO_EXPERTS) is not None and table.guessed == {3: 1}
    table.free(3)
    assert not table.guessed and table.slot_of[3] == -1


def test_many_uses_at_once_count_like_one_by_one() -> None:
    together, singly = DecayedFrequency(8, 4.0), DecayedFrequency(8, 4.0)
    experts, times = np.array([1, 2, 1, 5, 1]), np.array([1, 1, 2, 3, 7])
    together.use(experts, times)
    for e, t in zip(experts, times, strict=True):
        singly.use(np.array([e]), np.array([t]))
    assert np.allclose(together.warmth[[1, 2, 5]], singly.warmth[[1, 2, 5]])
    assert together.warmth[1] == pytest.approx(np.log2(2 ** (1 / 4) + 2 ** (2 / 4) + 2 ** (7 / 4)))
