"""Slot pool: demand, speculation and eviction, with a reader that counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine.cache.eviction import DecayedFrequency, SlotTable
from engine.cache.pool import SlotPool
from engine.checkpoint.experts import ExpertLayer, ExpertTensor
from engine.stats import Stats

EXPERTS = 10


def table(slots: int, half_life: float = 1e-3) -> SlotTable:
    return SlotTable(np.arange(EXPERTS), slots, DecayedFrequency(EXPERTS, half_life), np.full(EXPERTS, -1, np.int32))


class CountingReader:
    """A reader that delivers at once and records the requests."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []
        self.broken = False

    def submit(
        self, pieces: list[Any], label: str, *, speculative: bool = False, finish: Any = None, layer: int | None = None
    ) -> Any:
        expert = int(label.split()[-1])
        self.asked.append((expert, speculative))
        for piece in pieces:
            piece.into[:] = bytes([expert]) * len(piece.into)
        failed = self.broken
        return SimpleNamespace(
            wait=lambda: None, join=lambda: None, cancel=lambda: False, begun=1.0, ended=2.0, failed=failed
        )

    def hurry(self, load: Any) -> None:
        pass


@pytest.fixture
def reader() -> CountingReader:
    return CountingReader()


@pytest.fixture
def bank() -> SlotPool:
    place = np.zeros(EXPERTS, np.int32), np.arange(EXPERTS, dtype=np.int64) * 64
    layer = ExpertLayer("layers.0.mlp", (ExpertTensor("up_proj", "weight", "U8", (4, 16), *place),))
    inner: dict[str, dict[str, mx.array]] = {"up_proj": {}}
    return SlotPool(layer, table(4), inner, {}, compute=mx.float32, stats=Stats())


def use(bank: SlotPool, reader: CountingReader, time: int, *experts: int) -> None:
    wanted = np.array(experts)
    bank.table.policy.use(wanted, np.full(len(wanted), time))
    bank.request(wanted, reader)  # type: ignore[arg-type]
    bank.settle(wanted)


def guess(bank: SlotPool, reader: CountingReader, time: int, *experts: int) -> None:
    bank.guess(np.array(experts), time, reader)  # type: ignore[arg-type]


def cached(bank: SlotPool) -> set[int]:
    return set(np.flatnonzero(bank.table.slot_of >= 0).tolist())


def test_what_is_asked_for_is_in_its_slot(bank: SlotPool, reader: CountingReader) -> None:
    rng = np.random.default_rng(0)
    for time in range(1, 200):
        wanted = rng.choice(EXPERTS, size=rng.integers(1, 5), replace=False)
        use(bank, reader, time, *wanted)
        assert len(cached(bank)) <= 4 and cached(bank).issuperset(wanted.tolist())
        slots = bank.table.slot_of[wanted]
        assert len(set(slots.tolist())) == len(wanted)
        memory = np.array(bank.inner["up_proj"]["weight"])
        assert all((memory[slot] == expert).all() for slot, expert in zip(slots, wanted, strict=True))
    assert len(reader.asked) < 500


def test_what_failed_while_nobody_waited_is_read_again(bank: SlotPool, reader: CountingReader) -> None:
    reader.broken = True
    bank.request(np.array([5]), reader)  # type: ignore[arg-type]
    reader.broken = False
    use(bank, reader, 1, 5)
    use(bank, reader, 2, 5)
    assert reader.asked == [(5, False)] * 2 and bank.table.slot_of[5] >= 0


def test_the_coldest_goes_first(bank: SlotPool, reader: CountingReader) -> None:
    for time, expert in enumerate([1, 2, 3, 4, 1, 5], start=1):
        use(bank, reader, time, expert)
    assert cached(bank) == {1, 3, 4, 5}


def test_speculation_takes_free_slots_and_counts_when_used(bank: SlotPool, reader: CountingReader) -> None:
    use(bank, reader, 1, 0, 1)
    guess(bank, reader, 2, 2, 3)
    assert reader.asked[-2:] == [(2, True), (3, True)]
    use(bank, reader, 2, 2)
    assert (bank._stats.prefetch_issued, bank._stats.prefetch_useful) == (2, 1)


def test_speculation_pushes_out_no_warmer_expert(bank: SlotPool, reader: CountingReader) -> None:
    use(bank, reader, 50, 0, 1, 2, 3)
    guess(bank, reader, 10, 4)
    assert cached(bank) == {0, 1, 2, 3}
    guess(bank, reader, 51, 4)
    assert 4 in cached(bank) and len(cached(bank)) == 4


def test_speculation_keeps_its_own_guesses(bank: SlotPool, reader: CountingReader) -> None:
    use(bank, reader, 1, 0, 1, 2, 3)
    guess(bank, reader, 2, 0, 1, 2, 3, 4, 5)
    assert cached(bank) == {0, 1, 2, 3}


def test_a_full_bank_holds_its_experts_in_order(reader: CountingReader, bank: SlotPool) -> None:
    """The model's own module can then use expert numbers as slot numbers."""
    assert not bank.holds_all
    inner: dict[str, dict[str, mx.array]] = {"up_proj": {}}
    whole = SlotPool(bank.layer, table(99), inner, {}, compute=mx.float32, stats=Stats())
    whole.fill(np.arange(EXPERTS), reader)  # type: ignore[arg-type]
    assert whole.holds_all and whole.table.slot_of.tolist() == list(range(EXPERTS))
