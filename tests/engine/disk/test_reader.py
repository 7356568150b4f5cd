"""The reader: blocks, short reads, errors, the page cache's bypass, bandwidth and the order of the queue."""

from __future__ import annotations

import errno
import heapq
import mmap
import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine import KnobError, Knobs, ReadError, footprint
from engine.disk.direct import address, lay_out
from engine.disk.load import Block, Piece, cut
from engine.disk.reader import Reader
from engine.disk.throttle import Bandwidth
from engine.stats import Stats


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 300_001, dtype=np.uint8).tobytes())
    return path


def reader(
    file: Path, stats: Stats, *, threads: int = 4, kib: int = 64, direct: bool = False, gbps: float | None = None
) -> Reader:
    return Reader((file,), stats, threads=threads, block_bytes=kib * 1024, direct=direct, gbps=gbps)


def pieces(ranges: list[tuple[int, int]]) -> tuple[list[Piece], list[bytearray]]:
    buffers = [bytearray(n) for _, n in ranges]
    return [Piece(0, offset, memoryview(b)) for (offset, _), b in zip(ranges, buffers, strict=True)], buffers


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_cut_joins_what_touches_and_keeps_to_the_block_size(block: int) -> None:
    ranges = [(100, 30), (0, 50), (50, 50), (400, 1), (130, 5)]
    source = np.arange(500) % 251
    parts, buffers = pieces(ranges)
    blocks = list(cut(parts, block))
    for b in blocks:
        assert 0 < b.nbytes <= block and b.nbytes == sum(len(v) for v in b.into)
        at = b.offset
        for view in b.into:
            view[:] = bytes(source[at : at + len(view)].tolist())
            at += len(view)
    for (offset, n), buffer in zip(ranges, buffers, strict=True):
        assert list(buffer) == source[offset : offset + n].tolist()
    assert len(blocks) == -(-135 // block) + 1


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("kib", [4, 64, 1024])
def test_bytes_arrive_as_they_are_on_disk(file: Path, direct: bool, kib: int) -> None:
    content, stats = file.read_bytes(), Stats()
    ranges = [(17, 100_000), (100_017, 3), (250_000, 50_001), (4096, 4096)]
    with_pieces, buffers = pieces(ranges)
    r = reader(file, stats, kib=kib, direct=direct)
    r.submit(with_pieces, "expert").wait()
    r.close()
    for (offset, n), buffer in zip(ranges, buffers, strict=True):
        assert bytes(buffer) == content[offset : offset + n]
    total = sum(n for _, n in ranges)
    assert stats.bytes_read == total if not direct else stats.bytes_read > total
    assert stats.reads >= total // (kib * 1024)


def test_blocks_of_direct_reads_share_no_page() -> None:
    parts, buffers = pieces([(100, 9_000), (9_100, 20_000), (50_000, 10)])
    blocks = list(cut(parts, 8192, 4096))
    assert [(b.offset, b.offset + b.nbytes) for b in blocks] == [
        (100, 12288), (12288, 20480), (20480, 28672), (28672, 29100), (50_000, 50_010)
    ]  # fmt: skip
    assert sum(b.nbytes for b in blocks) == sum(map(len, buffers))


@pytest.mark.parametrize("phase", [0, 17, 1000, 4095])
@pytest.mark.parametrize("kib", [4, 16, 256])
def test_direct_reads_go_straight_where_the_address_allows(
    file: Path, monkeypatch: pytest.MonkeyPatch, phase: int, kib: int
) -> None:
    """Destinations that lie in their pages as the file's bytes do: only the pages at their ends pass through scratch."""
    memory = mmap.mmap(-1, 200_000)
    ranges = [(phase, 50_000), (phase + 50_000, 70_001)]
    parts = [Piece(0, offset, memoryview(memory)[offset : offset + n]) for offset, n in ranges]
    begin = address(memoryview(memory))
    straight = 0
    real = os.preadv

    def spy(fd: int, into: list[memoryview], offset: int) -> int:
        nonlocal straight
        straight += sum(len(view) for view in into if begin <= address(view) < begin + len(memory))
        return real(fd, into, offset)

    monkeypatch.setattr(os, "preadv", spy)
    r = reader(file, Stats(), kib=kib, direct=True)
    r.submit(parts, "expert").wait()
    r.close()
    assert straight >= 120_001 - 4 * 4096
    assert memory[phase : phase + 120_001] == file.read_bytes()[phase : phase + 120_001]
    assert not any(memory[:phase]) and not any(memory[phase + 120_001 :])


@pytest.mark.parametrize(("offset", "memory", "straight"), [(0, 0, 8192), (0, 8, 0), (512, 512, 7680), (100, 0, 0)])
def test_only_whole_pages_at_fitting_addresses_go_straight(offset: int, memory: int, straight: int) -> None:
    into = memoryview(mmap.mmap(-1, 16384))[memory : memory + 8192]
    block = Block(0, offset, 8192, [into])
    size = -(-(offset + 8192) // 4096) * 4096
    views, rest = lay_out(block, 0, memoryview(bytearray(size)), 4096, 512)
    assert sum(map(len, views)) == size
    went = 8192 - sum(len(target) for target, _ in rest)
    assert went == straight // 4096 * 4096


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_deliver_brings_every_byte_from_aligned_scratch(file: Path, direct: bool, threads: int) -> None:
    """As for memory that `preadv` cannot write: the destination is only a name to the reader."""
    asked: list[int] = []

    class Inverted:
        def staging(self, nbytes: int) -> memoryview:
            return memoryview(mmap.mmap(-1, nbytes))

        def __call__(self, into: memoryview, source: memoryview) -> None:
            asked.append(len(into))
            into[:] = bytes(255 - b for b in source)

    ranges = [(5, 20_000), (20_005, 100), (90_000, 4096)]
    parts, buffers = pieces(ranges)
    r = Reader((file,), Stats(), threads=threads, block_bytes=8192, direct=direct, gbps=None, deliver=Inverted())
    r.submit(parts, "expert").wait()
    r.close()
    assert sum(asked) == 24_196
    for (offset, n), buffer in zip(ranges, buffers, strict=True):
        assert bytes(255 - b for b in buffer) == file.read_bytes()[offset : offset + n]


@pytest.mark.parametrize("where", ["staging", "copy"])
def test_an_error_of_the_delivery_is_raised_by_wait(file: Path, where: str) -> None:
    class Broken:
        def staging(self, nbytes: int) -> memoryview:
            if where == "staging":
                raise RuntimeError("invalid device pointer")
            return memoryview(mmap.mmap(-1, nbytes))

        def __call__(self, into: memoryview, source: memoryview) -> None:
            raise RuntimeError("invalid device pointer")

    r = Reader((file,), Stats(), threads=1, block_bytes=4096, direct=False, gbps=None, deliver=Broken())
    for _ in range(2):  # the thread is still there
        with pytest.raises(RuntimeError, match="invalid device pointer"):
            r.submit(pieces([(0, 10_000)])[0], "expert").wait()
    r.close()


@pytest.mark.parametrize("direct", [False, True])
def test_short_and_interrupted_reads_go_on_where_they_stopped(
    file: Path, monkeypatch: pytest.MonkeyPatch, direct: bool
) -> None:
    real = os.preadv
    calls: list[int] = []

    def short(fd: int, into: list[memoryview], offset: int) -> int:
        calls.append(offset)
        if len(calls) % 3 == 2:
            raise InterruptedError(errno.EINTR, "Interrupted system call")
        count = real(fd, into, offset)
        return count if count <= 5000 else max(5000, count // 3)

    monkeypatch.setattr(os, "preadv", short)
    parts, buffers = pieces([(5, 30_000), (30_005, 10)])
    r = reader(file, Stats(), direct=direct, threads=1)
    r.submit(parts, "expert").wait()
    r.close()
    assert bytes(buffers[0]) + bytes(buffers[1]) == file.read_bytes()[5:30_015]
    assert len(calls) > 3 and all(a <= b for a, b in pairwise(calls))
    assert not direct or all(offset % 4096 == 0 for offset in calls)


def test_an_error_names_file_and_expert_and_is_never_silent(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(5, "Input/output error")

    r = reader(file, Stats())
    parts, _ = pieces([(0, 10)])
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(ReadError, match=r"model\.safetensors: model\.layers\.3 expert 7 .*byte 0 .*Input/output error"):
        r.submit(parts, "model.layers.3 expert 7").wait()
    monkeypatch.undo()
    r.submit(parts, "again").wait()  # the threads are still there
    r.close()


def test_a_file_that_became_shorter_is_an_error(file: Path) -> None:
    r = reader(file, Stats())
    os.truncate(file, 1000)
    parts, _ = pieces([(900, 500)])
    with pytest.raises(ReadError, match="unexpected end of file"):
        r.submit(parts, "expert").wait()
    r.close()


def test_a_failing_conversion_is_raised_by_wait(file: Path) -> None:
    def finish() -> None:
        raise ValueError("bad shape")

    r = reader(file, Stats())
    with pytest.raises(ValueError, match="bad shape"):
        r.submit(pieces([(0, 10)])[0], "expert", finish=finish).wait()
    r.close()


class Clock:
    """Time as one of several threads sees it; sleeps take `late` seconds too long."""

    def __init__(self, late: float) -> None:
        self.now, self.late = 0.0, late

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds + self.late


@pytest.mark.parametrize("gbps", [0.02, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("kib", [4, 1024, 8192])
@pytest.mark.parametrize("threads", [1, 4, 16])
@pytest.mark.parametrize("late", [0.0, 0.001])
def test_bandwidth_is_one_budget_over_all_threads(gbps: float, kib: int, threads: int, late: float) -> None:
    """Threads of a disk that takes no time itself, each with its own time: block by block no sooner than a disk of that
    speed, and no later than one sleep behind it, however often a sleep took too long."""
    clock = Clock(late)
    bandwidth = Bandwidth(gbps, clock, clock.sleep)
    nbytes, blocks, begin = kib * 1024, 500, 3.0
    turns = [(begin, thread) for thread in range(threads)]
    ended = []
    for _ in range(blocks):
        clock.now, thread = heapq.heappop(turns)
        bandwidth.finish(nbytes, begin)
        ended.append(clock.now)
        heapq.heappush(turns, (clock.now, thread))
    for number, end in enumerate(sorted(ended), start=1):
        due = begin + number * nbytes / (gbps * 1e9)
        assert due - 1e-9 <= end <= due + late + 1e-9


def test_idle_time_gives_no_credit() -> None:
    clock = Clock(0.0)
    bandwidth = Bandwidth(0.001, clock, clock.sleep)
    for begin in (1.0, 100.0, 100.5, 1e6):
        clock.now = begin
        for number in range(1, 11):
            bandwidth.finish(10_000, begin)
            assert clock.now == pytest.approx(begin + number * 0.01)


def test_a_disk_slower_than_the_bandwidth_waits_for_nothing() -> None:
    clock = Clock(0.0)
    bandwidth = Bandwidth(1.0, clock, lambda _: pytest.fail("slept"))
    for _ in range(10):
        started = clock.now
        clock.now += 0.1
        bandwidth.finish(1_000_000, started)


@pytest.mark.parametrize("threads", [1, 4])
def test_the_bandwidth_is_held_by_the_reader(file: Path, threads: int) -> None:
    """300 kB at 1 MB/s cannot come in faster than that; the disk itself would take a millisecond."""
    r = reader(file, Stats(), threads=threads, kib=16, gbps=0.001)
    begin = time.perf_counter()
    loads = [r.submit(pieces([(i * 30_000, 30_000)])[0], "expert") for i in range(10)]
    for load in loads:
        load.wait()
    assert time.perf_counter() - begin >= 0.3
    r.close()


def test_demand_overtakes_speculation(file: Path) -> None:
    arrived: list[str] = []
    r = reader(file, Stats(), threads=1, gbps=0.01)
    loads = [
        r.submit(
            pieces([(i * 1000, 60_000)])[0],
            name,
            speculative=name != "demand",
            finish=lambda name=name: arrived.append(name),
        )
        for i, name in enumerate(["first", "guess", "guess", "demand"])
    ]
    for load in loads:
        load.wait()
    r.close()
    assert arrived.index("demand") <= 1  # the first read was under way already


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Reads wait until it is set."""
    gate, real = threading.Event(), os.preadv

    def waiting(fd: int, into: list[memoryview], offset: int) -> int:
        assert gate.wait(60)
        return real(fd, into, offset)

    monkeypatch.setattr(os, "preadv", waiting)
    return gate


def test_a_cancelled_load_is_not_read(file: Path, gate: threading.Event) -> None:
    stats = Stats()
    r = reader(file, stats, threads=1, kib=4)
    first = r.submit(pieces([(0, 10)])[0], "first")
    parts, (buffer,) = pieces([(4096, 40_000)])
    guess = r.submit(parts, "guess", speculative=True)
    assert guess.cancel()
    guess.join()  # at once: nothing of it had begun
    with pytest.raises(ReadError, match="guess was not read"):
        guess.wait()
    gate.set()
    first.wait()
    assert not first.cancel()
    first.wait()
    r.submit(pieces([(0, 10)])[0], "behind it", speculative=True).wait()
    r.close()
    assert not any(buffer) and stats.reads == 2


def test_what_had_begun_of_a_cancelled_load_ends_before_join(file: Path, gate: threading.Event) -> None:
    finished: list[str] = []
    r = reader(file, Stats(), threads=2, kib=4)
    parts, (buffer,) = pieces([(4096, 40_000)])
    load = r.submit(parts, "guess", speculative=True, finish=lambda: finished.append("guess"))
    while load.waiting > 8:
        time.sleep(0.001)
    assert load.cancel()
    assert not load._done.is_set()
    gate.set()
    load.join()
    r.close()
    assert bytes(buffer[:8192]) == file.read_bytes()[4096:12288] and not any(buffer[8192:])
    assert not finished


def test_a_hurried_load_overtakes_other_speculation(file: Path, gate: threading.Event) -> None:
    arrived: list[str] = []
    r = reader(file, Stats(), threads=1, kib=4)
    loads = {
        name: r.submit(
            pieces([(4096, 10_000)])[0], name, speculative=name != "first", finish=lambda name=name: arrived.append(name)
        )
        for name in ("first", "a", "b", "c")
    }
    r.hurry(loads["c"])
    gate.set()
    for load in loads.values():
        load.wait()
    r.close()
    assert arrived == ["first", "c", "a", "b"]


def test_closing_reads_what_was_demanded_and_drops_speculation(file: Path, gate: threading.Event) -> None:
    r = reader(file, Stats(), threads=1, kib=4)
    parts, (buffer,) = pieces([(0, 20_000)])
    demanded = r.submit(parts, "demanded")
    guess = r.submit(pieces([(0, 20_000)])[0], "guess", speculative=True)
    threading.Timer(0.05, gate.set).start()
    r.close()
    demanded.wait()
    assert bytes(buffer) == file.read_bytes()[:20_000]
    with pytest.raises(ReadError, match="guess was not read"):
        guess.wait()
    r.close()
    with pytest.raises(ReadError, match="late cannot be read: the reader is closed"):
        r.submit(pieces([(0, 10)])[0], "late")


def test_nothing_to_read_is_there_at_once(file: Path) -> None:
    finished: list[bool] = []
    r = reader(file, Stats())
    r.submit([], "expert", finish=lambda: finished.append(True)).wait()
    r.close()
    assert finished == [True]


def open_files(path: Path) -> int:
    return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path.resolve()) for fd in os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists a process's open files so")
def test_neither_threads_nor_files_outlive_a_reader_that_was_not_used(file: Path) -> None:
    before = threading.active_count()
    r = reader(file, Stats())
    assert threading.active_count() == before and open_files(file) == 1
    del r  # as when `load` fails later on
    assert open_files(file) == 0
    with pytest.raises(ReadError, match=r"missing cannot be opened \(No such file or directory\); check"):
        Reader((file, file.with_name("missing")), Stats(), threads=1, block_bytes=4096, direct=False, gbps=None)
    assert open_files(file) == 0


def test_direct_where_the_file_system_refuses(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Path, flags: int, *rest: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(KnobError, match=r"io_mode=direct is not possible for .*; use io_mode=buffered"):
        reader(file, Stats(), direct=True)


def test_macos_asks_for_f_nocache(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr("engine.disk.direct.sys.platform", "darwin")
    monkeypatch.setattr("engine.disk.direct.fcntl.fcntl", lambda fd, command, arg: asked.append((command, arg)))
    parts, buffers = pieces([(10, 5000)])
    r = reader(file, Stats(), direct=True)
    r.submit(parts, "expert").wait()
    r.close()
    assert asked == [(48, 1)] and bytes(buffers[0]) == file.read_bytes()[10:5010]


FAULTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "direct": {"io_mode": "direct"},
    "window": {"sync_window": "all"},
    "prefetch": {"prefetch": "stale_gate", "prefetch_depth": 2},
}


@pytest.mark.parametrize("knobs", FAULTS.values(), ids=FAULTS)
def test_one_unreadable_expert_never_becomes_logits(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, knobs: dict[str, Any]
) -> None:
    """EIO in one expert's bytes: an error that names file, layer and expert wherever it is needed, and exact logits again
    when the disk reads once more, from the same engine."""
    path = checkpoint("deepseek_v3", None, True)
    ids = list(range(40))
    with engine.load(path) as resident:
        expected, expected_one = resident.logits(ids), resident.logits([7])
    with engine.load(path, Knobs(cache_gb=footprint(path).one_token_gb, **knobs)) as streamed:
        streamed.logits([7])
        layer = streamed.checkpoint.layers[1]
        of_7 = np.flatnonzero(streamed.uses[1])
        streamed.logits(list(range(100, 200)))
        expert = next(int(e) for e in of_7 if streamed.state.slot_of[1, e] < 0)  # pushed out since
        at = int(layer.tensors[0].offset[expert])
        bad = streamed.checkpoint.files[int(layer.tensors[0].file[expert])]
        real = os.preadv

        def broken(fd: int, into: list[memoryview], offset: int) -> int:
            if os.path.samestat(os.fstat(fd), bad.stat()) and offset <= at < offset + sum(map(len, into)):
                raise OSError(errno.EIO, "Input/output error")
            return real(fd, into, offset)

        monkeypatch.setattr(os, "preadv", broken)
        message = rf"{bad.name}: {layer.block} expert {expert} could not be read at byte \d+ \(Input/output error\)"
        for tokens in ([7], ids, [7], ids):
            with pytest.raises(ReadError, match=message):
                streamed.logits(tokens)
        monkeypatch.setattr(os, "preadv", real)
        for _ in range(2):
            assert np.array_equal(streamed.logits([7]), expected_one)
            assert np.array_equal(streamed.logits(ids), expected)
