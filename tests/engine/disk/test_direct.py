"""Direct reads: whole pages go straight to fitting addresses; short and refused reads are handled."""

from __future__ import annotations

import errno
import mmap
import os
from itertools import pairwise
from pathlib import Path

import pytest
from reads import pieces, reader

from engine import KnobError, ReadError
from engine.disk.direct import address, lay_out
from engine.disk.load import Block, Piece
from engine.stats import Stats


@pytest.mark.parametrize("phase", [0, 17, 1000, 4095])
@pytest.mark.parametrize("kib", [4, 16, 256])
def test_direct_reads_go_straight_where_the_address_allows(
    file: Path, monkeypatch: pytest.MonkeyPatch, phase: int, kib: int
) -> None:
    """If destinations have the file's offsets within a page, only the pages at their ends pass through scratch."""
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


def test_a_file_that_became_shorter_is_an_error(file: Path) -> None:
    r = reader(file, Stats())
    os.truncate(file, 1000)
    parts, _ = pieces([(900, 500)])
    with pytest.raises(ReadError, match="unexpected end of file"):
        r.submit(parts, "expert").wait()
    r.close()


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
