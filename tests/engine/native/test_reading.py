"""The native reader: every byte as plain reads give it, and no write after a wait, whatever happens in between.

The tests cover engine/native/reading and engine/native/pool.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cores import Books, a_reader, closed, forking

from engine.native import core

FUZZ = int(os.environ.get("HEADRACE_FUZZ", "1"))  # how much longer the random tests run
ROOM = 10 if os.environ.get("HEADRACE_NATIVE") else 1  # a sanitizer keeps freed memory for a while
GUARD = 64  # bytes around each destination that no read may touch


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    made = [folder / name for name in "ab"]
    for file, size in zip(made, (300_001, 65_536), strict=True):
        file.write_bytes(rng.integers(0, 256, size, np.uint8).tobytes())
    return made


def destination(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Memory with guards, at any address, and the part of it that a read fills."""
    shift = int(rng.integers(0, 40))
    whole = np.full(size + 2 * GUARD + shift, 0xA5, np.uint8)
    return whole, whole[GUARD + shift : GUARD + shift + size]


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("alignment", "memory"), [(1, 1), (512, 512), (4096, 4096), (16384, 16384), (4096, 0)])
def test_random_ranges_arrive_as_plain_reads_give_them(
    files: list[Path], direct: bool, apart: bool, alignment: int, memory: int
) -> None:
    if direct and alignment < 4096:
        alignment = memory = 4096
    rng = np.random.default_rng(alignment + apart)
    contents = [file.read_bytes() for file in files]
    block = int(rng.choice([1, 3, 512, 5000, 1 << 20])) if alignment == 1 else 8192
    try:
        reader, fds = a_reader(
            *files, threads=int(rng.integers(1, 5)), block=block,
            alignment=alignment, memory=memory, apart=apart, direct=direct,
        )  # fmt: skip
    except OSError as e:
        pytest.skip(f"this file system refuses O_DIRECT: {e}")
    for _ in range(12 * FUZZ):
        reader.heal()
        match int(rng.integers(4)):
            case 0:
                reader.inject(most=int(rng.integers(1, 9)) * alignment)
            case 1:
                reader.inject(error=errno.EINTR, times=int(rng.integers(1, 4)))
            case _:
                pass
        ranges, expected = [], []
        for _ in range(int(rng.integers(1, 12))):
            number = int(rng.integers(2))
            offset = int(rng.integers(0, len(contents[number])))
            size = min(int(rng.integers(0, 3000)), len(contents[number]) - offset)
            whole, part = destination(size, rng)
            ranges.append((number, offset, part.data))
            expected.append((whole, part, contents[number][offset : offset + size]))
        failure = reader.submit(ranges, bool(rng.integers(2))).wait()
        assert failure is None, failure
        for whole, part, bytes_ in expected:
            assert part.tobytes() == bytes_
            outside = int((whole == 0xA5).sum()) - int((part == 0xA5).sum())
            assert outside == len(whole) - len(part)
    closed(reader, fds)


def test_errors_name_their_place_and_the_thread_goes_on(files: list[Path]) -> None:
    reader, fds = a_reader(*files, threads=1)
    into = bytearray(20_000)
    for fault, kind, code in (({"error": errno.EIO}, core.READ, errno.EIO), ({"most": 0}, core.END_OF_FILE, 0)):
        reader.inject(file=0, begin=9000, end=9001, **fault)  # type: ignore[arg-type]
        found = reader.submit([(0, 0, memoryview(into))]).wait()
        assert found == (kind, code, 0, 8192, -1)
        reader.heal()
    found = reader.submit([(1, 65_000, memoryview(into))]).wait()
    assert found is not None and found[0] == core.END_OF_FILE
    assert reader.submit([(0, 5, memoryview(into))]).wait() is None
    closed(reader, fds)
    with pytest.raises(core.ReaderClosed):
        reader.submit([(0, 0, memoryview(into))])


def test_more_destinations_than_one_call_takes(files: list[Path]) -> None:
    reader, fds = a_reader(*files, threads=2, block=1 << 20)
    into = bytearray(30_000)
    parts = [(0, 7 + at, memoryview(into)[at : at + 10]) for at in range(0, 30_000, 10)]
    assert reader.submit(parts).wait() is None and bytes(into) == files[0].read_bytes()[7:30_007]
    closed(reader, fds)


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def resident_kib() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads and memory in /proc")
def test_random_sequences_leave_no_write_no_thread_and_no_memory(files: list[Path]) -> None:
    """10,000 calls of submit, cancel, hurry, wait, hold and close. After a wait no byte changes any more."""
    rng = np.random.default_rng(1)
    before, calls, held_kib = threads(), 0, 0
    while calls < 10_000 * FUZZ:
        reader, fds = a_reader(*files, threads=int(rng.integers(1, 5)), block=int(rng.choice([512, 4096])))
        open_: list[tuple[core.Load, np.ndarray]] = []
        ended: list[tuple[np.ndarray, bytes]] = []
        for _ in range(int(rng.integers(20, 120))):
            calls += 1
            what = int(rng.integers(8))
            if what < 3 or not open_:
                into = np.zeros(int(rng.integers(1, 6000)), np.uint8)
                open_.append((reader.submit([(0, int(rng.integers(200_000)), into.data)], bool(rng.integers(2))), into))
            elif what == 3:
                open_[rng.integers(len(open_))][0].cancel()
            elif what == 4:
                open_[rng.integers(len(open_))][0].hurry()
            elif what == 5:
                reader.hold(True)
            else:
                reader.hold(False)
                load, into = open_.pop(rng.integers(len(open_)))
                if what == 7:
                    load.cancel()
                failure = load.wait()
                assert load.done and (failure is None or failure[0] == core.CANCELLED)
                ended.append((into, into.tobytes()))
        reader.hold(False)
        if rng.integers(2):
            closed(reader, fds)
            assert all(load.done for load, _ in open_)
        else:
            open_.clear()  # dropped loads are cancelled and joined
            closed(reader, fds)
        assert all(into.tobytes() == then for into, then in ended)
        if calls > 3000 and not held_kib:
            held_kib = resident_kib()
    del reader
    assert threads() == before
    assert resident_kib() < held_kib + ROOM * 20_000


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads and memory in /proc")
def test_500_lifetimes_do_not_grow(files: list[Path]) -> None:
    before, first = threads(), 0
    for number in range(500):
        reader, fds = a_reader(*files, threads=4)
        books = Books(reader, 16, 8.0)
        target = np.zeros(6 * 16, np.uint8)
        made = [("widen_bf16", [0], [8], 0, 0.0, None, target.data)]
        pool, _ = books.pool(6, np.array([1]), size=8, staging=64, made=made)
        slots = np.zeros(3, np.int32)
        for time in range(4):
            pool.decode(np.arange(time, time + 3), time, slots)
        pool.request(np.array([9, 10]), None, True)
        if number % 2:
            reader.close(True)
        del pool, books
        reader.close(True)
        for fd in fds:
            os.close(fd)
        if number == 100:
            first = resident_kib()
    del reader
    assert threads() == before and resident_kib() < first + ROOM * 8_000


FORK = """
import os, sys, time
sys.path[:0] = ["tests", "."]
import numpy as np
from pathlib import Path
from cores import a_reader
reader, fds = a_reader(Path(sys.argv[1]), threads=3)
into = np.zeros(50_000, np.uint8)
reader.hold(True)
load = reader.submit([(0, 0, into.data)])
time.sleep(0.3)  # the address sanitizer's memory is locked while a thread starts, in the child for ever
child = os.fork()
if child == 0:
    try:
        load.wait()
    except RuntimeError as e:
        print(e, flush=True)
    reader.close()
    sys.exit(0)
_, status = os.waitpid(child, 0)
reader.hold(False)
print(status, load.wait(), into.tobytes() == Path(sys.argv[1]).read_bytes()[:50_000])
"""


def test_a_fork_with_reads_under_way(files: list[Path]) -> None:
    """The child gets one clear error and ends; the parent goes on."""
    done: Any = subprocess.run(
        [sys.executable, "-c", FORK, str(files[0])], capture_output=True, text=True, timeout=60, env=forking()
    )
    assert done.stdout.splitlines() == [
        "the reader's threads do not exist in a process made by fork; load the model there", "0 None True",
    ], done.stderr  # fmt: skip


@pytest.mark.parametrize("threads", [1, 4])
def test_the_bandwidth_is_held(files: list[Path], threads: int) -> None:
    """200 kB at 2 MB/s take 0.1 s."""
    import time

    reader, fds = a_reader(*files, threads=threads, block=16_384, gbps=0.002)
    begin = time.monotonic()
    loads = [reader.submit([(0, i * 20_000, memoryview(bytearray(20_000)))]) for i in range(10)]
    assert all(load.wait() is None for load in loads) and time.monotonic() - begin >= 0.1
    closed(reader, fds)


def test_the_bandwidth_can_be_lifted(files: list[Path]) -> None:
    """At 200 bytes/s, 20 kB would take 100 s; a read that is held is waited for in another thread."""
    reader, fds = a_reader(*files, threads=1, gbps=2e-7)
    reader.limit(0.0)
    assert reader.submit([(0, 0, memoryview(bytearray(20_000)))]).wait() is None
    reader.limit(2e-7)
    held = reader.submit([(0, 0, memoryview(bytearray(20_000)))])
    threading.Event().wait(0.05)
    assert not held.done
    closed(reader, fds)
