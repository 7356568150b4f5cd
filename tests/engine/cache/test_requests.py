"""Requests: a pool without memory on a dry reader makes the choices of one that reads, and counts the same blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine.cache.requests import PoolRequests, pinned_flags
from engine.disk.reader import Reader
from engine.errors import ReadError
from engine.native import core
from engine.stats import Stats

EXPERTS, BYTES, SLOTS = 12, 5000, 4


class Bank:
    """A pool of `SLOTS` slots, expert 0 pinned, over a file in which no expert begins at a whole unit."""

    def __init__(self, file: Path, direct: bool, dry: bool) -> None:
        self.stats = Stats()
        self.stats.count_layers(1)
        self.slot_of, warmth = np.full(EXPERTS, -1, np.int32), np.full(EXPERTS, -np.inf)
        self.layer = core.Layer(self.slot_of, warmth, np.zeros(EXPERTS, np.int64), self.stats.layers[0], 4.0)
        self.reader = Reader((file,), threads=2, block_bytes=4096, direct=direct, gbps=None, dry=dry)
        memory = np.zeros(SLOTS * BYTES, np.uint8)
        source = (
            np.zeros(EXPERTS, np.int32),
            np.arange(EXPERTS, dtype=np.int64) * BYTES + 100,
            BYTES,
            None if dry else memory,
            0,
            -1,
        )
        pinned = np.array([0])
        native = core.Pool(
            self.layer, self.reader.native, SLOTS, pinned_flags(pinned, EXPERTS), [source], [], 0, False, None
        )
        self.pool = PoolRequests(native, np.arange(EXPERTS), SLOTS, pinned, self.stats, block="mlp", expert_bytes=BYTES)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experts"
    path.write_bytes(bytes(EXPERTS * BYTES + 4096))
    return path


@pytest.mark.parametrize("direct", [False, True])
def test_a_dry_pool_counts_what_a_reading_one_does(file: Path, direct: bool) -> None:
    reading, dry = (Bank(file, direct, dry) for dry in (False, True))
    rng, slots = np.random.default_rng(3), np.zeros(2, np.int32)
    for bank in (reading, dry):
        bank.pool.fill(np.array([0]))
    for time in range(1, 120):
        ids, guessed = (rng.choice(EXPERTS, size=2, replace=False).astype(np.int32) for _ in range(2))
        for bank in (reading, dry):
            if time % 3:
                bank.pool.decode_into(ids, time, slots)
            else:
                bank.layer.count(ids, 1, time - 1)
                bank.pool.request(ids)
                bank.pool.settle(ids)
            bank.pool.guess(guessed, time + 1)
            bank.pool.settle(guessed)  # so that no read is dropped before it begins
        assert np.array_equal(reading.slot_of, dry.slot_of) and reading.pool.guessed == dry.pool.guessed
    assert np.array_equal(reading.stats.layers, dry.stats.layers) and dry.stats.reads > 100
    names = ("misses", "layers_missed", "prefetch_issued", "prefetch_useful", "prefetch_bytes", "prefetch_useful_bytes")
    assert [getattr(reading.stats, name) for name in names] == [getattr(dry.stats, name) for name in names]
    assert dry.stats.prefetch_useful > 0 and dry.reader.native.totals == reading.reader.native.totals
    assert dry.reader.native.threads == 0
    for bank in (reading, dry):
        bank.reader.close()


def test_a_pool_is_described_by_its_slots(file: Path) -> None:
    bank = Bank(file, False, True)
    pool = bank.pool
    assert (pool.slots, pool.loose, pool.holds_all, pool.settled, pool.changed) == (4, 3, False, True, True)
    pool.changed = False
    assert not pool.changed and not pool.waits_for(np.array([3]))
    pool.guess(np.array([3]), 1)
    assert pool.waits_for(np.array([3])) and not pool.settled
    pool.take_in()
    assert pool.settled and pool.guessed == [3]
    pool.forget()
    assert pool.guessed == []


def test_a_closed_reader_is_named(file: Path) -> None:
    bank = Bank(file, False, True)
    bank.reader.close()
    for call in (lambda e: bank.pool.request(e), lambda e: bank.pool.guess(e, 1)):
        with pytest.raises(ReadError, match="experts of mlp cannot be read: the reader is closed; load the model again"):
            call(np.array([5]))
