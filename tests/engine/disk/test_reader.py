"""The reader: delivery, errors, bandwidth, and demand reads before speculative ones."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reads import pieces, reader

import engine
from engine import Knobs, ReadError, footprint
from engine.disk.reader import Reader
from engine.stats import Stats


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


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_deliver_brings_every_byte_from_aligned_scratch(file: Path, direct: bool, threads: int) -> None:
    """Stands for memory that `preadv` cannot write to."""
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


def test_a_failing_conversion_is_raised_by_wait(file: Path) -> None:
    def finish() -> None:
        raise ValueError("bad shape")

    r = reader(file, Stats())
    with pytest.raises(ValueError, match="bad shape"):
        r.submit(pieces([(0, 10)])[0], "expert", finish=finish).wait()
    r.close()


@pytest.mark.parametrize("threads", [1, 4])
def test_the_bandwidth_is_held_by_the_reader(file: Path, threads: int) -> None:
    """300 kB at 1 MB/s take 0.3 s; the disk alone would take a millisecond."""
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
