"""Native pools: no slot counts as filled unless its expert has arrived, whatever ends the reads in between.

The tests cover engine/native/pool and engine/native/eviction.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cores import Books, a_reader, closed

from engine.native import core

NONE = np.array([], int)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 4096, np.uint8).tobytes())
    return path


@pytest.fixture
def reader(file: Path) -> Iterator[core.Reader]:
    reader, fds = a_reader(file, threads=1, block=16)
    yield reader
    closed(reader, fds)


def close_while_held(reader: core.Reader) -> None:
    """Close the reader while its reads are held: none that has not begun takes place."""
    ending = threading.Thread(target=reader.close, args=(True,))
    ending.start()
    ending.join(30)
    assert not ending.is_alive()


def test_reads_of_evicted_experts_are_left_when_the_reader_is_closed(reader: core.Reader) -> None:
    books = Books(reader, 8, 8.0)
    pool, _ = books.pool(3, NONE)
    reader.hold(True)
    pool.request(np.array([0, 1, 2]), None, True)
    close_while_held(reader)
    with pytest.raises(core.ReaderClosed):
        pool.request(np.array([3, 4, 5]), None, False)
    pool.take_in()
    assert pool.settled and (books.slot_of == -1).all() and pool.failures() == []
    assert pool.settle(np.array([0, 1, 2])) >= 0


def test_a_pinned_expert_that_did_not_arrive_loses_its_slot(reader: core.Reader, file: Path) -> None:
    books = Books(reader, 8, 8.0)
    pool, memory = books.pool(4, np.array([0]), size=64)
    reader.hold(True)
    pool.request(np.array([0]), None, True)
    timer = threading.Timer(0.2, reader.hold, (False,))
    timer.start()
    pool.forget()
    timer.join()
    arrived = memory[:64].tobytes() == file.read_bytes()[:64]
    assert arrived or (books.slot_of == -1).all()
    pool.request(np.array([0]), None, False)
    pool.settle(np.array([0]))
    pool.forget()
    assert books.slot_of[0] == 0 and memory[:64].tobytes() == file.read_bytes()[:64]


def test_speculative_reads_that_have_not_begun_are_withdrawn(reader: core.Reader, file: Path) -> None:
    books = Books(reader, 8, 8.0)
    pool, memory = books.pool(5, NONE, size=64)
    reader.hold(True)
    pool.request(np.array([0, 1, 2, 3]), None, True)
    pool.request(np.array([3, 4]), None, False)  # 3 and 4 are needed: they stay
    pool.withdraw(np.array([1, 7]))
    assert books.slot_of[[1, 3, 4]].min() >= 0 and books.slot_of[2] == -1 and pool.changed
    reader.hold(False)
    pool.settle(np.array([0, 1, 3, 4]))
    kept = [expert for expert in (0, 1, 3, 4) if books.slot_of[expert] >= 0]  # the read of 0 may have begun
    assert kept[-3:] == [1, 3, 4] and pool.settled and books.counts[2] == 4 * len(kept)
    pool.withdraw(np.array([1]))
    pool.request(np.array([2]), None, False)
    pool.settle(np.array([2]))
    for expert in (1, 2, 3, 4):
        slot = books.slot_of[expert]
        assert memory[64 * slot : 64 * slot + 64].tobytes() == file.read_bytes()[64 * expert : 64 * expert + 64]


def test_random_withdrawals_leave_every_settled_expert_whole(file: Path) -> None:
    """Speculation, withdrawal and demand in a random order: what is settled has its bytes, and nothing is left."""
    reader, fds = a_reader(file, threads=4, block=16)
    books, rng, data = Books(reader, 32, 8.0), np.random.default_rng(4), file.read_bytes()
    pool, memory = books.pool(12, NONE, size=64)
    withdrawn = 0
    for _ in range(1500):
        pool.request(rng.choice(32, 6, replace=False), None, True)
        chosen = rng.choice(32, 4, replace=False)
        before = int((books.slot_of >= 0).sum())
        pool.withdraw(chosen)
        withdrawn += before - int((books.slot_of >= 0).sum())
        pool.request(chosen, None, False)
        assert pool.settle(chosen) >= 0
        for expert in chosen:
            slot = books.slot_of[expert]
            assert memory[64 * slot : 64 * slot + 64].tobytes() == data[64 * expert : 64 * expert + 64]
    assert withdrawn > 0
    pool.withdraw(NONE)
    pool.settle(np.arange(32))
    assert pool.settled
    closed(reader, fds)


def test_negative_numbers_are_no_experts(reader: core.Reader) -> None:
    books = Books(reader, 4, 8.0)
    pool, _ = books.pool(1, NONE)
    pool.request(np.array([-1, 0]), np.array([-1]), False)
    assert pool.settle(np.array([-1, 0, 0, -1])) >= 0
    books.layer.use(np.array([1, -1]), 5)
    assert pool.guess(np.array([-1, 1]), 6) == 1
    pool.request(np.array([2]), np.array([-1]), False)
    assert pool.settle(np.array([2])) >= 0 and books.slot_of.tolist() == [-1, -1, 0, -1]


def test_a_prediction_is_confirmed_by_a_choice_that_is_cached(reader: core.Reader) -> None:
    books = Books(reader, 4, 8.0)
    pool, _ = books.pool(4, NONE)
    assert pool.guess(np.array([1, 2]), 1) == 2
    while not pool.settled:
        pool.take_in()
    assert pool.decode(np.array([2]), 1, np.zeros(1, np.int32)) is None
    assert pool.guessed() == [1] and pool.useful[0] == 1


def test_staging_memory_outlives_the_pool_and_the_reader(file: Path) -> None:
    reader, fds = a_reader(file)
    books = Books(reader, 4, 8.0)
    source = (np.zeros(4, np.int32), np.arange(4, dtype=np.int64) * 100, 90, None, 6, -1)
    pool = core.Pool(books.layer, reader, 2, np.zeros(4, np.uint8), [source], [], 96, True, None)
    pool.request(np.array([3, 1]), None, False)
    pool.settle(np.array([3, 1]))
    assert pool.arrived() == [1, 3]
    view = pool.staging(3)
    with pytest.raises(KeyError):
        pool.staging(3)
    pool.forget()
    for number in (1, -1, 4, 2**40):
        with pytest.raises(KeyError):
            pool.staging(number)
    del pool, books
    closed(reader, fds)
    del reader
    assert view.readonly and bytes(view[6:96]) == file.read_bytes()[300:390]


def test_a_second_thread_is_refused(reader: core.Reader) -> None:
    """Two pools share the arrays of their layer."""
    books = Books(reader, 8, 8.0)
    pools = [books.pool(2, NONE)[0] for _ in range(2)]
    reader.hold(True)
    other = threading.Thread(target=pools[0].decode, args=(np.array([0, 1]), 1, np.zeros(2, np.int32)))
    other.start()
    end = time.monotonic() + 30
    while books.slot_of[1] < 0 and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.05)  # the other thread now waits for the reads
    for call in (
        lambda: pools[1].request(np.array([4]), None, False),
        lambda: books.layer.use(np.array([4]), 1),
        pools[0].take_in,
        pools[1].forget,
    ):
        with pytest.raises(RuntimeError, match="another thread uses"):
            call()
    reader.hold(False)
    other.join(30)
    assert not other.is_alive()
    pools[1].request(np.array([4]), None, False)
    assert pools[1].settle(np.array([4])) >= 0


@pytest.mark.parametrize("made", [(), (("widen_bf16", [0], [40], 0, 0.0, None, bytearray(160)),)])
def test_a_dry_reader_counts_whole_units_and_touches_nothing(made: tuple[object, ...]) -> None:
    """Experts of 40 bytes in blocks of 16, read in units of 8: three blocks of 16, 16 and 8 bytes each."""
    dry = core.Reader([0], [1], 1, 16, 8, 1, False, 4096, 0.0, None, True)
    books = Books(dry, 8, 8.0)
    pool, memory = books.pool(2, NONE, size=40, staging=64 if made else 0, made=made)
    memory[:] = 7
    for time_, ids in enumerate(([0, 1], [1, 2], [3, 4]), start=1):
        assert pool.decode(np.array(ids), time_, np.zeros(2, np.int32)) is not None
    assert pool.guess(np.array([6]), 99) == 1 and not pool.settled
    assert books.counts.tolist() == [1, 5, 6 * 3, 6 * 40, 3] and dry.totals == (18, 240)
    pool.settle(np.array([6]))
    assert pool.settled and pool.failures() == [] and (memory == 7).all() and dry.threads == 0
    dry.close()
    with pytest.raises(core.ReaderClosed):
        pool.request(np.array([7]), None, False)


def test_dry_slots_are_read_when_they_are_fetched(reader: core.Reader, file: Path) -> None:
    """An expert whose bytes are still in its slot is owed nothing; one that another expert replaced is."""
    books, data = Books(reader, 8, 8.0), file.read_bytes()
    pool, memory = books.pool(3, NONE, size=64)
    pool.request(np.array([0, 1, 2]), None, False)
    pool.settle(np.array([0, 1, 2]))
    read = books.counts[2]
    pool.dry = True
    assert pool.request(np.array([3, 4]), None, False) == 2 and pool.settle(np.array([3, 4])) == 0
    books.layer.use(np.array([4]), 1)
    pool.request(np.array([0, 5]), None, False)  # 0 returns, perhaps to its old slot
    assert pool.settled and books.counts[2] == read and pool.dry
    with pytest.raises(ValueError, match="has no slot that lacks its bytes"):
        pool.fetch(4)
    pool.dry = False
    slots = {int(e): int(books.slot_of[e]) for e in np.flatnonzero(books.slot_of >= 0)}
    owed = {expert for _, _, expert in pool.owed()}
    rows = memory.reshape(3, 64)
    assert owed == {e for e, slot in slots.items() if rows[slot].tobytes() != data[64 * e : 64 * e + 64]}
    assert all(file == 0 and offset == 64 * expert for file, offset, expert in pool.owed()) and 4 in owed
    pool.fetch(4)
    assert 4 not in {expert for _, _, expert in pool.owed()}
    for expert in (4, 7, -1, 8, 2**40):
        with pytest.raises(ValueError, match="has no slot that lacks its bytes"):
            pool.fetch(expert)
    pool.settle(np.array([4]))
    assert rows[books.slot_of[4]].tobytes() == data[256:320]
    left = len(owed) - 1
    assert pool.disown() == left and pool.disown() == 0 and (books.slot_of >= 0).sum() == 3 - left


def test_what_could_not_be_fetched_loses_its_slot(reader: core.Reader) -> None:
    books = Books(reader, 8, 8.0)
    pool, _ = books.pool(2, NONE, size=64)
    pool.dry = True
    pool.request(np.array([0, 1]), None, False)
    pool.dry = False
    reader.inject(error=5, times=1)
    pool.fetch(0)
    assert pool.settle(np.array([0])) == -1 and pool.failures()[0][0] == 0
    assert books.slot_of[:2].tolist() == [-1, 1] and pool.owed() == [(0, 64, 1)]
    reader.close(True)
    with pytest.raises(core.ReaderClosed):
        pool.fetch(1)
    assert (books.slot_of == -1).all() or pool.owed()


def test_forgotten_bytes_serve_again(reader: core.Reader) -> None:
    books = Books(reader, 8, 8.0)
    pool, _ = books.pool(2, NONE, size=64)
    pool.request(np.array([3, 5]), None, False)
    pool.settle(np.array([3, 5]))
    pool.forget()
    pool.dry = True
    pool.request(np.array([3, 6]), None, False)
    pool.dry = False
    assert [expert for *_, expert in pool.owed()] == [6] and books.slot_of[3] == 0


def test_large_tensors_are_made_by_several_threads_and_all_before_the_expert_is_settled(tmp_path: Path) -> None:
    """Four tensors of an expert are widened, each large enough for a part of its own; biases follow the third."""
    experts, count = 12, 96 << 10
    stored = np.random.default_rng(1).integers(0, 1 << 15, (experts, 4, count), np.uint16) & 0x3FFF  # below 2
    path = tmp_path / "f"
    path.write_bytes(stored.tobytes())
    reader, fds = a_reader(path, threads=4, block=1 << 20)
    books = Books(reader, experts, 8.0)
    slots = 3
    memory = [np.zeros((slots, count), np.float32) for _ in range(5)]
    sizes, at = count * 2, [n * count * 2 for n in range(4)]
    sources = [
        (np.zeros(experts, np.int32), np.arange(experts, dtype=np.int64) * 4 * sizes + n * sizes, sizes, None, n * sizes, -1)
        for n in range(4)
    ]
    made = [("widen_bf16", [at[n]], [sizes], 0, 0.0, None, memory[n].data.cast("B")) for n in range(4)]
    made.append(("bias_f32", [], [], 0, 7.0, memory[2].data.cast("B"), memory[4].data.cast("B")))
    pool = core.Pool(books.layer, reader, slots, np.zeros(experts, np.uint8), sources, made, 4 * sizes, False, None)
    rng = np.random.default_rng(2)
    for _ in range(30):
        chosen = np.sort(rng.choice(experts, slots, replace=False))
        pool.request(chosen, None, False)
        pool.settle(chosen)
        for expert in chosen:
            slot = books.slot_of[expert]
            want = (stored[expert].astype(np.uint32) << 16).view(np.float32)
            for n in range(4):
                assert (memory[n][slot] == want[n]).all()
            assert (memory[4][slot] == want[2] * np.float32(-7.0)).all()
            for one in memory:
                one[slot] = 0
        pool.forget()
    closed(reader, fds)


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(("bits", "sizes"), [(4, (1, 1)), (6, (1, 1)), (8, (1, 1)), (8, (1, 1, 2))])
def test_large_codes_are_joined_in_slices(tmp_path: Path, bits: int, sizes: tuple[int, ...], direct: bool) -> None:
    """An expert's codes, of several slices, equal those that are joined at once. From the page cache each slice of a stream
    is a read, and a dry reader counts as many; direct reads stay long."""
    experts, unit, slots = 6, (246 << 10) + 24, 2
    streams = [unit * size for size in sizes]
    total, path = sum(streams), tmp_path / "f"
    stored = np.random.default_rng(bits).integers(0, 256, (experts, total), np.uint8)
    path.write_bytes(stored.tobytes())
    rules = (1 << 20, 4096, 1, False, 4096, 0.0, None) if direct else (1 << 20, 1, 1, False, 4096, 0.0, None)
    with open(path, "rb") as f:
        reader, dry = core.Reader([f.fileno()], [1], 4, *rules), core.Reader([0], [1], 4, *rules, True)
        starts = np.cumsum([0, *streams[:-1]]).tolist()
        memory = np.zeros((slots, total), np.uint8)
        made = ("join", starts, streams, bits, 0.0, None, memory.data.cast("B"))
        pools = []
        for one, kept, making in ((reader, total, [made]), (dry, 0, [])):
            books = Books(one, experts, 8.0)
            file, offset = np.zeros(experts, np.int32), np.arange(experts, dtype=np.int64) * total
            sources = [
                (file, offset + at, size, None, at if kept else 0, -1, 0) for at, size in zip(starts, streams, strict=True)
            ]
            fixed = np.zeros(experts, np.uint8)
            pools.append((books, core.Pool(books.layer, one, slots, fixed, sources, making, kept, False, None)))
        for chosen in np.random.default_rng(3).permuted(np.tile(np.arange(experts), (8, 1)), axis=1)[:, :slots]:
            for _, pool in pools:
                pool.request(chosen, None, False)
                pool.settle(chosen)
            assert pools[0][1].failures() == [] and pools[0][0].counts.tolist() == pools[1][0].counts.tolist()
            for expert in chosen:
                want = np.zeros(total, np.uint8)
                parts = [stored[expert, at : at + size] for at, size in zip(starts, streams, strict=True)]
                core.join_planes(parts, bits, want)
                assert (memory[pools[0][0].slot_of[expert]] == want).all()
            memory[:] = 0
            for _, pool in pools:
                pool.forget()
        slices = -(-total // (192 << 10))
        assert reader.totals == dry.totals and reader.totals[0] == 16 * (len(sizes) * slices if not direct else 1)
        reader.close()


def test_streams_that_do_not_fit_their_codes_are_refused(reader: core.Reader) -> None:
    """Sources that name codes are streams of exactly these codes, and no bias is derived from codes."""
    books = Books(reader, 4, 8.0)
    numbers, memory = (np.zeros(4, np.int32), np.arange(4, dtype=np.int64) * 64), bytearray(32)
    join = ("join", [0, 16], [16, 16], 4, 0.0, None, memory)

    def pool(*streams: tuple[int, int, int], made: Sequence[Any] = (join,)) -> core.Pool:
        sources = [(*numbers, size, None, at, -1, joined) for size, at, joined in streams]
        return core.Pool(books.layer, reader, 1, np.zeros(4, np.uint8), sources, list(made), 64, False, None)

    pool((16, 0, 0), (16, 16, 0))
    bias = ("bias_f32", [], [], 0, 7.0, memory, bytearray(32))
    for wrong in (
        [(16, 0, 0)],
        [(16, 0, 0), (16, 16, 1)],
        [(16, 0, 7), (16, 16, 7)],
        [(16, 0, 0), (16, 32, 0)],
        [(32, 0, 0)],
    ):
        with pytest.raises(ValueError, match="are no streams"):
            pool(*wrong)
    with pytest.raises(ValueError, match="are no streams"):
        pool((16, 0, 0), (16, 16, 0), made=(join, bias))
