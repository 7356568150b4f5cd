"""Slot pool: demand, speculation and eviction, on a real file of experts."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from reads import until

from engine.cache.pool import SlotPool
from engine.checkpoint.experts import ExpertLayer, ExpertTensor
from engine.disk.reader import Reader
from engine.errors import ReadError
from engine.native import core
from engine.stats import Stats

EXPERTS, BYTES = 10, 64


class Bank:
    """A pool of `slots` slots over a file in which the bytes of an expert are its number, and its layer."""

    def __init__(self, folder: Path, slots: int, threads: int = 2) -> None:
        file = folder / "experts"
        file.write_bytes(b"".join(bytes([expert]) * BYTES for expert in range(EXPERTS)))
        place = np.zeros(EXPERTS, np.int32), np.arange(EXPERTS, dtype=np.int64) * BYTES
        layer = ExpertLayer("layers.0.mlp", (ExpertTensor("up_proj", "weight", "U8", (4, 16), *place),))
        self.stats = Stats()
        self.stats.count_layers(1)
        self.slot_of, warmth = np.full(EXPERTS, -1, np.int32), np.full(EXPERTS, -np.inf)
        self.shared = core.Layer(self.slot_of, warmth, np.zeros(EXPERTS, np.int64), self.stats.layers[0], 1e-3)
        self.reader = Reader((file,), threads=threads, block_bytes=4096, direct=False, gbps=None)
        self.inner: dict[str, dict[str, mx.array]] = {"up_proj": {}}
        self.pool = SlotPool(
            layer, self.shared, self.slot_of, np.arange(EXPERTS), slots, self.inner, {}, self.reader, compute=mx.float32,
            stats=self.stats,
        )  # fmt: skip
        self.reader.native.record(True)

    @property
    def asked(self) -> list[tuple[int, bool]]:
        """The experts that were read so far, each with whether it was read speculatively."""
        return [(offset // BYTES, speculative) for _, offset, _, speculative in self.reader.native.calls()]

    def use(self, time: int, *experts: int) -> None:
        wanted = np.array(experts)
        self.shared.use(wanted, time)
        self.pool.request(wanted)
        self.pool.settle(wanted)

    def guess(self, time: int, *experts: int) -> None:
        self.pool.guess(np.array(experts), time)
        while not self.pool.settled:
            self.pool.take_in()

    def cached(self) -> set[int]:
        return set(np.flatnonzero(self.slot_of >= 0).tolist())


@pytest.fixture
def bank(tmp_path: Path) -> Iterator[Bank]:
    made = Bank(tmp_path, 4)
    yield made
    made.reader.close()


def test_what_is_requested_is_in_its_slot(bank: Bank) -> None:
    rng = np.random.default_rng(0)
    for time in range(1, 200):
        wanted = rng.choice(EXPERTS, size=rng.integers(1, 5), replace=False)
        bank.use(time, *wanted)
        assert len(bank.cached()) <= 4 and bank.cached().issuperset(wanted.tolist())
        slots = bank.slot_of[wanted]
        assert len(set(slots.tolist())) == len(wanted)
        memory = np.array(bank.inner["up_proj"]["weight"])
        assert all((memory[slot] == expert).all() for slot, expert in zip(slots, wanted, strict=True))
    assert len(bank.asked) < 500


def test_decode_counts_reads_and_names_the_slots(bank: Bank) -> None:
    for time, ids in enumerate(([3, 1], [1, 3], [1, 1], [7, 8], [9, 2]), start=1):
        slots = bank.pool.decode(mx.array([[ids]], dtype=mx.uint32), time)
        assert slots.shape == (1, 1, 2) and slots.dtype == mx.int32
        memory = np.array(bank.inner["up_proj"]["weight"])
        assert [int(memory[slot].max()) for slot in np.array(slots).reshape(-1)] == ids
    assert (bank.stats.hits, bank.stats.misses) == (3, 6) and len(bank.asked) == 6
    assert bank.cached() == {7, 8, 9, 2}


def test_what_failed_while_no_one_waited_is_read_again(bank: Bank) -> None:
    bank.reader.native.inject(error=errno.EIO, times=1)
    bank.pool.request(np.array([5]))
    while not bank.pool.settled:
        bank.pool.take_in()
    bank.use(1, 5)
    bank.use(2, 5)
    assert bank.asked == [(5, False)] * 2 and bank.slot_of[5] >= 0


def test_an_expert_that_cannot_be_read_has_no_slot(bank: Bank) -> None:
    bank.use(1, 0)
    bank.reader.native.inject(error=errno.EIO)
    for _ in range(2):
        with pytest.raises(
            ReadError, match=r"experts: layers\.0\.mlp expert 5 could not be read at byte 320 \(Input/output"
        ):
            bank.use(2, 0, 5)
        with pytest.raises(ReadError, match="expert 6"):
            bank.pool.decode(mx.array([0, 6], dtype=mx.uint32), 3)
    assert bank.cached() == {0}
    bank.reader.native.heal()
    bank.use(3, 0, 5, 6)
    assert bank.cached() == {0, 5, 6}


def test_a_closed_reader_is_named(bank: Bank) -> None:
    bank.use(1, 0)
    bank.reader.close()
    for call in (
        lambda: bank.use(2, 1),
        lambda: bank.pool.decode(mx.array([1]), 2),
        lambda: bank.pool.guess(np.array([1]), 3),
    ):
        with pytest.raises(ReadError, match=r"layers\.0\.mlp cannot be read: the reader is closed; load the model again"):
            call()
    bank.use(4, 0)
    assert bank.cached() == {0}


def test_the_coldest_is_evicted_first(bank: Bank) -> None:
    for time, expert in enumerate([1, 2, 3, 4, 1, 5], start=1):
        bank.use(time, expert)
    assert bank.cached() == {1, 3, 4, 5}


def test_speculation_takes_free_slots_and_counts_when_used(bank: Bank) -> None:
    bank.use(1, 0, 1)
    bank.guess(2, 2, 3)
    assert sorted(bank.asked[-2:]) == [(2, True), (3, True)] and bank.pool.guessed == [2, 3]
    bank.use(2, 2)
    assert (bank.stats.prefetch_issued, bank.stats.prefetch_useful) == (2, 1) and bank.pool.guessed == [3]


def test_speculation_evicts_no_warmer_expert(bank: Bank) -> None:
    bank.use(50, 0, 1, 2, 3)
    bank.guess(10, 4)
    assert bank.cached() == {0, 1, 2, 3}
    bank.guess(51, 4)
    assert 4 in bank.cached() and len(bank.cached()) == 4


def test_speculation_keeps_its_own_guesses(bank: Bank) -> None:
    bank.use(1, 0, 1, 2, 3)
    bank.guess(2, 0, 1, 2, 3, 4, 5)
    assert bank.cached() == {0, 1, 2, 3}


def test_forgetting_frees_all_slots_while_reads_are_under_way(bank: Bank) -> None:
    bank.reader.native.hold(True)
    bank.pool.request(np.array([1, 2, 3]), speculative=True)
    assert not bank.pool.settled and bank.pool.waits_for(np.array([2]))
    bank.reader.native.hold(False)
    bank.pool.forget()
    assert bank.pool.settled and not bank.cached()


@pytest.fixture
def waiting(tmp_path: Path) -> Iterator[tuple[Bank, Future[mx.array]]]:
    """A pool whose reader may read one block at a time, and a thread that waits for expert 7 and reads it itself."""
    bank = Bank(tmp_path, 4, threads=1)
    bank.reader.native.hold(True)
    with ThreadPoolExecutor(1) as other:
        ids = mx.array([7, 7], dtype=mx.uint32)
        mx.eval(ids)
        slots = other.submit(bank.pool.decode, ids, 1)
        until(lambda: bank.asked == [(7, False)])
        yield bank, slots
        bank.reader.native.hold(False)
    bank.reader.close()


def test_speculation_goes_on_after_a_thread_that_read_while_it_waited(waiting: tuple[Bank, Future[mx.array]]) -> None:
    bank, slots = waiting
    guess = bank.reader.native.submit([(0, 0, memoryview(bytearray(BYTES)))], True)
    bank.reader.native.hold(False)
    slots.result(60)
    until(lambda: guess.done)


def test_a_reader_closes_after_the_read_of_a_thread_that_waits(waiting: tuple[Bank, Future[mx.array]]) -> None:
    """Neither its file nor its memory may end before."""
    bank, slots = waiting
    closing = threading.Thread(target=bank.reader.close)
    closing.start()
    until(lambda: bank.reader.native.closed)
    closing.join(0.1)
    assert closing.is_alive()
    bank.reader.native.hold(False)
    closing.join(60)
    assert not closing.is_alive() and len(slots.result(60)) == 2 and bank.cached() == {7}


def test_a_full_pool_holds_its_experts_in_order(tmp_path: Path) -> None:
    """The model's own module can then use expert numbers as slot numbers."""
    whole = Bank(tmp_path, 99)
    whole.pool.fill(np.arange(EXPERTS))
    assert whole.pool.holds_all and whole.slot_of.tolist() == list(range(EXPERTS))
    whole.reader.close()
