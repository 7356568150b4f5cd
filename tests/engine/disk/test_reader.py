"""The reader: delivery, errors, and demand reads before speculative ones."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reads import ranges, reader, until

import engine
from engine import Knobs, ReadError, footprint
from engine.disk.reader import Reader
from engine.native import core

EIO = errno.EIO


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("kib", [4, 64, 1024])
def test_bytes_arrive_as_they_are_on_disk(file: Path, direct: bool, kib: int) -> None:
    content = file.read_bytes()
    places = [(17, 100_000), (100_017, 3), (250_000, 50_001), (4096, 4096)]
    parts, buffers = ranges(places)
    r = reader(file, kib=kib, direct=direct)
    assert r.native.submit(parts).wait() is None
    r.close()
    for (offset, n), buffer in zip(places, buffers, strict=True):
        assert bytes(buffer) == content[offset : offset + n]
    total = sum(n for _, n in places)
    reads, nbytes = r.native.totals
    assert nbytes == total if not direct else nbytes > total
    assert reads >= total // (kib * 1024)


def test_an_error_names_file_and_expert_and_is_never_silent(file: Path) -> None:
    r = reader(file)
    parts, (buffer,) = ranges([(0, 10)])
    r.native.inject(error=EIO)
    failure = r.native.submit(parts).wait()
    assert failure == (core.READ, EIO, 0, 0, -1)
    message = str(r.error("model.layers.3 expert 7", failure))
    assert message == (
        f"{file}: model.layers.3 expert 7 could not be read at byte 0 (Input/output error); check the disk, or copy the "
        "checkpoint again"
    )
    r.native.heal()
    assert r.native.submit(parts).wait() is None  # the threads are still there
    r.close()
    assert bytes(buffer) == file.read_bytes()[:10]


def test_the_first_failure_of_a_load_is_told(file: Path) -> None:
    """Its other blocks are read or fail, too, before anything is said."""
    r = reader(file, threads=1, kib=4)
    r.native.inject(begin=20_000, end=20_001, error=EIO)
    r.native.inject(begin=90_000, end=90_001, most=0)
    failure = r.native.submit(ranges([(0, 100_000)])[0]).wait()
    r.close()
    assert failure == (core.READ, EIO, 0, 20_000 // 4096 * 4096, -1)
    assert r.native.totals[0] == -(-100_000 // 4096) - 2


def test_faults_are_those_of_their_file_and_bytes(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    r = Reader((file, other), threads=2, block_bytes=4096, direct=False, gbps=None)
    r.native.inject(file=1, begin=100, end=200, error=EIO)
    into = [bytearray(50) for _ in range(4)]
    found = [
        r.native.submit([(number, offset, memoryview(into[i]))]).wait()
        for i, (number, offset) in enumerate([(0, 120), (1, 20), (1, 50), (1, 51)])
    ]
    r.close()
    assert found[:3] == [None, None, None] and found[3] == (core.READ, EIO, 1, 51, -1)
    with pytest.raises(ReadError, match=r"other: x could not be read at byte 51 \(Input/output error\)"):
        raise r.error("x", found[3])


def test_memory_that_is_not_there_is_an_error(file: Path) -> None:
    r = Reader((file,), threads=1, block_bytes=1 << 60, direct=False, gbps=None)
    for _ in range(2):
        failure = r.native.submit(ranges([(0, 10)])[0]).wait()
        assert failure is not None and failure[0] == core.MEMORY
        assert str(r.error("expert 1", failure)) == (
            "expert 1 was not read: there is no memory for the reads; lower read_block_kib or cache_gb"
        )
    r.close()


def order(r: Reader) -> list[int]:
    """The offsets of the reads so far."""
    return [offset for _, offset, _, _ in r.native.calls()]


def test_demand_overtakes_speculation(file: Path) -> None:
    r = reader(file, threads=1, kib=4)
    r.native.hold(True)
    r.native.record(True)
    loads = [r.native.submit(ranges([(place, 8192)])[0], place != 90_000) for place in (0, 30_000, 60_000, 90_000)]
    until(lambda: len(r.native.calls()) == 1)
    r.native.hold(False)
    for load in loads:
        assert load.wait() is None
    r.close()
    found = order(r)
    assert found.index(90_000) <= 1 and found.index(94_096) == found.index(90_000) + 1  # the first read had begun already
    assert found[3:] == sorted(found[3:])
    assert [speculative for *_, speculative in r.native.calls()].count(False) == 2


def test_a_hurried_load_overtakes_other_speculation(file: Path) -> None:
    r = reader(file, threads=1, kib=4)
    r.native.hold(True)
    r.native.record(True)
    first = r.native.submit(ranges([(0, 4096)])[0])
    a, b, c = (r.native.submit(ranges([(place, 8192)])[0], True) for place in (10_000, 20_000, 30_000))
    until(lambda: len(r.native.calls()) == 1)
    c.hurry()
    c.hurry()
    r.native.hold(False)
    for load in (first, a, b, c):
        assert load.wait() is None
    r.close()
    assert order(r) == [0, 30_000, 34_096, 10_000, 14_096, 20_000, 24_096]


def test_closing_reads_what_was_demanded_and_drops_speculation(file: Path) -> None:
    r = reader(file, threads=1, kib=4)
    r.native.hold(True)
    r.native.record(True)
    parts, (buffer,) = ranges([(0, 20_000)])
    demanded = r.native.submit(parts)
    guess = r.native.submit(ranges([(0, 20_000)])[0], True)
    until(lambda: len(r.native.calls()) == 1)
    threading.Timer(0.05, r.native.hold, (False,)).start()
    r.close()
    assert demanded.wait() is None
    assert bytes(buffer) == file.read_bytes()[:20_000]
    failure = guess.wait()
    assert failure is not None and failure[0] == core.CANCELLED
    r.close()
    assert r.native.closed
    with pytest.raises(core.ReaderClosed, match="the reader is closed"):
        r.native.submit(ranges([(0, 10)])[0])


def open_files(path: Path) -> int:
    return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path.resolve()) for fd in os.listdir("/proc/self/fd"))


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="only Linux lists a process's open files so")
def test_neither_threads_nor_files_outlive_a_reader(file: Path) -> None:
    before = threads()
    r = reader(file)
    assert threads() == before and open_files(file) == 1
    del r  # as when `load` fails later on
    assert open_files(file) == 0
    r = reader(file)
    assert r.native.submit(ranges([(0, 10)])[0]).wait() is None
    assert threads() == before + 4
    del r
    assert open_files(file) == 0
    until(lambda: threads() == before)  # the system lists an ended thread a little longer
    with pytest.raises(ReadError, match=r"missing cannot be opened \(No such file or directory\); check"):
        Reader((file, file.with_name("missing")), threads=1, block_bytes=4096, direct=False, gbps=None)
    assert open_files(file) == 0


EXIT = """
import sys
from pathlib import Path
from engine.disk.reader import Reader
r = Reader((Path(sys.argv[1]),), threads=2, block_bytes=4096, direct=False, gbps=None)
r.native.inject(delay_s=0.02)
loads = [r.native.submit([(0, 0, memoryview(bytearray(200_000)))], n % 2 == 1) for n in range(4)]
print("ends")
"""


def test_the_interpreter_ends_with_reads_under_way(file: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT, str(file)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(engine.__file__).parents[1],
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ends\n", "")


FAULTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "direct": {"io_mode": "direct"},
    "window": {"sync_window": "all"},
    "prefetch": {"prefetch": "stale_gate", "prefetch_depth": 2},
}


@pytest.mark.parametrize("knobs", FAULTS.values(), ids=FAULTS)
def test_one_unreadable_expert_never_becomes_logits(checkpoint: Callable[..., Path], knobs: dict[str, Any]) -> None:
    """EIO in one expert's bytes: an error that names file, layer and expert wherever it is needed, and exact logits again
    when the disk reads once more, from the same engine."""
    path = checkpoint("deepseek_v3", None, True)
    ids = list(range(40))
    with engine.load(path) as resident:
        expected, expected_one = resident.logits(ids), resident.logits([7])
    with engine.load(path, Knobs(cache_gb=footprint(path).one_token_gb, **knobs)) as streamed:
        assert streamed.state is not None
        streamed.logits([7])
        layer = streamed.checkpoint.layers[1]
        of_7 = np.flatnonzero(streamed.uses[1])
        streamed.logits(list(range(100, 200)))
        expert = next(int(e) for e in of_7 if streamed.state.slot_of[1, e] < 0)  # pushed out since
        at, number = int(layer.tensors[0].offset[expert]), int(layer.tensors[0].file[expert])
        name = streamed.checkpoint.files[number].name
        native = streamed.state.reader.native
        native.inject(file=number, begin=at, end=at + 1, error=EIO)
        message = rf"{name}: {layer.block} expert {expert} could not be read at byte \d+ \(Input/output error\)"
        for tokens in ([7], ids, [7], ids):
            with pytest.raises(ReadError, match=message):
                streamed.logits(tokens)
        native.heal()
        for _ in range(2):
            assert np.array_equal(streamed.logits([7]), expected_one)
            assert np.array_equal(streamed.logits(ids), expected)
