"""The reader: blocks, short reads, errors, the page cache's bypass, bandwidth and the order of the queue."""

from __future__ import annotations

import os
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from engine import KnobError, ReadError
from engine.reader import Piece, Reader, cut
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


def test_short_reads_go_on_where_they_stopped(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.preadv
    calls = []

    def short(fd: int, into: list[memoryview], offset: int) -> int:
        calls.append(offset)
        return whole(fd, [into[0][: max(1, len(into[0]) // 3)]], offset)

    monkeypatch.setattr(os, "preadv", short)
    parts, buffers = pieces([(5, 1000), (1005, 10)])
    r = reader(file, Stats())
    r.submit(parts, "expert").wait()
    r.close()
    assert bytes(buffers[0]) + bytes(buffers[1]) == file.read_bytes()[5:1015]
    assert len(calls) > 3 and all(a < b for a, b in pairwise(calls))


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


@pytest.mark.parametrize("threads", [1, 4])
def test_bandwidth_is_one_budget_over_all_threads(file: Path, threads: int) -> None:
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
    monkeypatch.setattr("engine.reader.sys.platform", "darwin")
    monkeypatch.setattr("engine.reader.fcntl.fcntl", lambda fd, command, arg: asked.append((command, arg)))
    parts, buffers = pieces([(10, 5000)])
    r = reader(file, Stats(), direct=True)
    r.submit(parts, "expert").wait()
    r.close()
    assert asked == [(48, 1)] and bytes(buffers[0]) == file.read_bytes()[10:5010]
