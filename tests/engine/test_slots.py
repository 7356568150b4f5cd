"""One bank through a reader that only counts: capacity, what is pushed out, and what speculation may do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.checkpoint import ExpertLayer, ExpertTensor
from engine.evict import DecayedFrequency
from engine.slots import Bank
from engine.stats import Stats

EXPERTS = 10


def free() -> np.ndarray:
    return np.full(EXPERTS, -1, np.int32)


class CountingReader:
    """Delivers at once; remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []

    def submit(self, pieces: list[Any], label: str, *, speculative: bool = False, finish: Any = None) -> Any:
        expert = int(label.split()[-1])
        self.asked.append((expert, speculative))
        for piece in pieces:
            piece.into[:] = bytes([expert]) * len(piece.into)
        return SimpleNamespace(wait=lambda: None, join=lambda: None)


@pytest.fixture
def reader() -> CountingReader:
    return CountingReader()


@pytest.fixture
def bank() -> Bank:
    place = np.zeros(EXPERTS, np.int32), np.arange(EXPERTS, dtype=np.int64) * 64
    layer = ExpertLayer("layers.0.mlp", (ExpertTensor("up_proj", "weight", "U8", (4, 16), *place),))
    inner: dict[str, dict[str, mx.array]] = {"up_proj": {}}
    return Bank(
        layer,
        np.arange(EXPERTS),
        4,
        inner,
        {},
        compute=mx.float32,
        policy=DecayedFrequency(EXPERTS, 1e-3),
        slot_of=free(),
        stats=Stats(),
    )


def use(bank: Bank, reader: CountingReader, time: int, *experts: int) -> None:
    wanted = np.array(experts)
    bank.policy.use(wanted, np.full(len(wanted), time))
    bank.request(wanted, reader)  # type: ignore[arg-type]
    bank.settle(wanted)


def cached(bank: Bank) -> set[int]:
    return set(np.flatnonzero(bank.slot_of >= 0).tolist())


def test_what_is_asked_for_is_in_its_slot(bank: Bank, reader: CountingReader) -> None:
    rng = np.random.default_rng(0)
    for time in range(1, 200):
        wanted = rng.choice(EXPERTS, size=rng.integers(1, 5), replace=False)
        use(bank, reader, time, *wanted)
        assert len(cached(bank)) <= 4 and cached(bank).issuperset(wanted.tolist())
        slots = bank.slot_of[wanted]
        assert len(set(slots.tolist())) == len(wanted)
        memory = np.array(bank.inner["up_proj"]["weight"])
        assert all((memory[slot] == expert).all() for slot, expert in zip(slots, wanted, strict=True))
    assert len(reader.asked) < 500


def test_the_coldest_goes_first(bank: Bank, reader: CountingReader) -> None:
    for time, expert in enumerate([1, 2, 3, 4, 1, 5], start=1):
        use(bank, reader, time, expert)
    assert cached(bank) == {1, 3, 4, 5}


def test_speculation_takes_free_slots_and_counts_when_used(bank: Bank, reader: CountingReader) -> None:
    use(bank, reader, 1, 0, 1)
    bank.guess(np.array([2, 3]), 2, reader)  # type: ignore[arg-type]
    assert reader.asked[-2:] == [(2, True), (3, True)]
    use(bank, reader, 2, 2)
    assert (bank._stats.prefetch_issued, bank._stats.prefetch_useful) == (2, 1)


def test_speculation_pushes_out_no_warmer_expert(bank: Bank, reader: CountingReader) -> None:
    use(bank, reader, 50, 0, 1, 2, 3)
    bank.guess(np.array([4]), 10, reader)  # type: ignore[arg-type]
    assert cached(bank) == {0, 1, 2, 3}
    bank.guess(np.array([4]), 51, reader)  # type: ignore[arg-type]
    assert 4 in cached(bank) and len(cached(bank)) == 4


def test_speculation_keeps_its_own_guesses(bank: Bank, reader: CountingReader) -> None:
    use(bank, reader, 1, 0, 1, 2, 3)
    bank.guess(np.array([0, 1, 2, 3, 4, 5]), 2, reader)  # type: ignore[arg-type]
    assert cached(bank) == {0, 1, 2, 3}


def test_a_full_bank_is_complete(reader: CountingReader, bank: Bank) -> None:
    assert not bank.complete
    inner: dict[str, dict[str, mx.array]] = {"up_proj": {}}
    policy = DecayedFrequency(EXPERTS, 1.0)
    everyone = np.arange(EXPERTS)
    whole = Bank(bank.layer, everyone, 99, inner, {}, compute=mx.float32, policy=policy, slot_of=free(), stats=Stats())
    use(whole, reader, 1, *range(EXPERTS))
    assert whole.complete and whole.slots == EXPERTS
