"""Native slots and eviction against the specification in Python (engine/cache/eviction.py), step by step and bit by bit.

The tests cover engine/native/eviction.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cores import Books, a_reader

from engine.cache.eviction import DecayedFrequency, SlotTable

STEPS = int(os.environ.get("HEADRACE_FUZZ", "1")) * 400


class Both:
    """The same pool twice: native, and as specified."""

    def __init__(
        self,
        books: Books,
        policy: DecayedFrequency,
        slot_of: np.ndarray,
        members: np.ndarray,
        slots: int,
        pinned: np.ndarray,
    ):
        self.members, self.slots, self.pinned = members, slots, pinned
        self.pool, _ = books.pool(slots, pinned)
        self.table = SlotTable(members, slots, policy, slot_of, pinned)
        self.request(pinned)

    def request(self, experts: np.ndarray, keep: np.ndarray | None = None) -> None:
        """Demand `experts`; predictions among them are confirmed."""
        self.pool.request(experts, keep, False)
        self.pool.settle(experts)
        for expert in experts.tolist():
            self.table.guessed.pop(expert, None)
        distinct = np.unique(experts)
        self.table.demand(distinct, distinct if keep is None else np.union1d(distinct, keep))

    def guess(self, experts: np.ndarray, time: int) -> None:
        """Predict `experts`; all reads end at once."""
        issued = self.pool.guess(experts, time)
        self.settle()
        placed = 0
        for expert in experts.tolist():
            if self.table.slot_of[expert] < 0:
                placed += self.table.guess(expert, time, experts) is not None
        assert issued == placed

    def settle(self) -> None:
        while not self.pool.settled:
            self.pool.take_in()


@pytest.mark.parametrize("half_life", [1e-6, 8.0, float("inf")])
@pytest.mark.parametrize("pinned", [0, 3])
def test_every_step_equals_the_specification(tmp_path: Path, half_life: float, pinned: int) -> None:
    (tmp_path / "f").write_bytes(bytes(64 * 8))
    reader, fds = a_reader(tmp_path / "f", threads=1)
    reader.inject(skip=True)
    rng = np.random.default_rng(pinned)
    experts = 32
    books, policy = Books(reader, experts, half_life), DecayedFrequency(experts, half_life)
    slot_of, uses = np.full(experts, -1, np.int32), np.zeros(experts, np.int64)
    order = rng.permutation(experts)
    pools = [
        Both(books, policy, slot_of, np.sort(order[:20]), 9, np.sort(order[:pinned])),
        Both(books, policy, slot_of, np.sort(order[20:]), 4, order[:0]),
    ]
    for step in range(1, STEPS):
        both = pools[step % 2]
        loose = both.slots - len(both.pinned)
        some = rng.choice(both.members, rng.integers(1, max(2, loose // 2)), replace=False).astype(
            rng.choice([np.int32, np.int64])
        )
        match int(rng.integers(5)):
            case 0 | 1:
                ids = rng.choice(some, len(some) + 1)  # repeats
                books.layer.use(ids, step)
                policy.use(ids, step)
                np.add.at(uses, ids, 1)
                both.request(ids)
            case 2:
                cached = both.members[slot_of[both.members] >= 0]
                keep = rng.choice(cached, min(len(cached), loose // 2), replace=False) if len(cached) else None
                both.request(some, keep)
            case 3:
                both.guess(some, step + int(rng.integers(2)))
            case _:
                used = rng.choice(both.members, len(some))
                books.layer.use(np.concatenate([used, [-1]]), step)  # -1: no expert
                policy.use(used, step)
                np.add.at(uses, used, 1)
        if step % 97 == 0:
            both.pool.forget()
            both.table.clear()
        assert np.array_equal(books.slot_of, slot_of), step
        assert books.warmth.tobytes() == policy.warmth.tobytes(), step
        assert np.array_equal(books.uses, uses)
        for one in pools:
            assert one.pool.guessed() == sorted(one.table.guessed)
    reader.close()
    for fd in fds:
        os.close(fd)


def test_counts_of_a_prompt_equal_the_specification(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(64))
    reader, fds = a_reader(tmp_path / "f")
    books, policy = Books(reader, 16, 8.0), DecayedFrequency(16, 8.0)
    rng = np.random.default_rng(5)
    books.slot_of[rng.choice(16, 6, replace=False)] = np.arange(6)
    hits = misses = position = 0
    for _ in range(60):
        tokens = int(rng.integers(1, 20))
        ids = rng.integers(-1, 16, (tokens, 4)).astype(np.int32)
        books.layer.count(ids, tokens, position)
        used = ids.reshape(-1) >= 0
        policy.use(ids.reshape(-1)[used], np.repeat(position + np.arange(1, tokens + 1), 4)[used])
        distinct = np.unique(ids[ids >= 0])
        hits += int((books.slot_of[distinct] >= 0).sum())
        misses += int((books.slot_of[distinct] < 0).sum())
        position += tokens
        assert books.warmth.tobytes() == policy.warmth.tobytes() and books.counts[:2].tolist() == [hits, misses]
    os.close(fds[0])


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(64))
    reader, fds = a_reader(tmp_path / "f")
    books = Books(reader, 4, 8.0)
    pool, _ = books.pool(2, np.array([], int))
    for ids, error in (
        (np.array([4]), ValueError),
        (np.array([-2]), ValueError),
        (np.array([0.5]), TypeError),
        ([1], TypeError),
    ):
        with pytest.raises(error):
            pool.request(ids, None, False)
    with pytest.raises(AssertionError, match="more experts at once"):
        pool.request(np.array([0, 1, 2]), None, False)
    with pytest.raises(ValueError, match="3 items, not 2"):
        pool.decode(np.array([0, 1]), 1, np.zeros(3, np.int32))
    with pytest.raises(ValueError, match="are not those of 2 tokens"):
        books.layer.count(np.array([0, 1, 2]), 2, 0)
    with pytest.raises(KeyError):
        pool.staging(1)
    os.close(fds[0])
