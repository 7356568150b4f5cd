"""Direct reads: whole pages go straight to fitting addresses; short and refused reads are handled."""

from __future__ import annotations

import errno
import mmap
import os
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from reads import pieces, reader

from engine import KnobError, ReadError
from engine.disk import direct
from engine.disk.direct import address, lay_out
from engine.disk.load import Block, Piece
from engine.disk.reader import Reader
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


class FakeMac:
    """A Mac's reads: pages of 16 KiB, F_NOCACHE, and a preadv that notes the calls which XNU would cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[int, int]] = []
        self.cached: list[tuple[int, list[int]]] = []  # calls that would go through the page cache
        self.calls = 0
        monkeypatch.setattr("engine.disk.direct.sys.platform", "darwin")
        monkeypatch.setattr("engine.disk.direct.fcntl.fcntl", lambda fd, command, arg: self.asked.append((command, arg)))
        unit = partial(direct.direct_unit, "darwin", PAGE)
        monkeypatch.setattr("engine.disk.direct.direct_unit", unit)
        monkeypatch.setattr("engine.disk.reader.direct_unit", unit)
        # Memory of a new mapping begins at a page, which has 16 KiB there.
        monkeypatch.setattr(Reader, "_scratch", lambda reader: aligned(reader._block_bytes + 2 * PAGE, 0))
        self._real = os.preadv
        monkeypatch.setattr(os, "preadv", self._preadv)

    def _preadv(self, fd: int, into: list[memoryview], offset: int) -> int:
        self.calls += 1
        fits = len(into) == 1 and not offset % PAGE and not address(into[0]) % PAGE and not len(into[0]) % PAGE
        if not fits:
            self.cached.append((offset, [len(view) for view in into]))
        return self._real(fd, into, offset)


PAGE = 16384


def aligned(nbytes: int, phase: int) -> memoryview:
    """Memory whose address modulo PAGE is `phase`."""
    whole = memoryview(mmap.mmap(-1, nbytes + 2 * PAGE))
    begin = (phase - address(whole)) % PAGE
    return whole[begin : begin + nbytes]


@pytest.mark.parametrize("kib", [4, 64, 4096])
@pytest.mark.parametrize("phase", [10, 0, 4096])
@pytest.mark.parametrize("ranges", [[(10, 5000)], [(10, 3_000_000)], [(16384, 2 << 20)], [(10, 99), (109, 1_500_000)]])
def test_every_call_of_macos_is_one_that_goes_past_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranges: list[tuple[int, int]], phase: int, kib: int
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(3_200_001))
    mac = FakeMac(monkeypatch)
    memory = aligned(ranges[-1][0] + ranges[-1][1] - ranges[0][0], phase)
    parts = [Piece(0, at, memory[at - ranges[0][0] :][:n]) for at, n in ranges]
    r = reader(file, Stats(), kib=kib, direct=True)
    r.submit(parts, "expert").wait()
    r.close()
    assert mac.asked == [(48, 1)] and mac.cached == [] and mac.calls
    assert memory == file.read_bytes()[ranges[0][0] :][: len(memory)]


def test_a_large_part_that_fits_goes_straight_on_macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(3_000_000))
    FakeMac(monkeypatch)
    copied = 0

    def copy(into: memoryview, source: memoryview) -> None:
        nonlocal copied
        copied += len(into)
        into[:] = source

    monkeypatch.setattr("engine.disk.reader._copy", copy)
    memory = aligned(2_000_000, 100)
    r = reader(file, Stats(), kib=4096, direct=True)
    r.submit([Piece(0, 100, memory)], "expert").wait()
    r.close()
    assert copied < 2 * PAGE and memory == file.read_bytes()[100:2_000_100]


@pytest.mark.parametrize(
    ("platform", "page", "unit"),
    [("darwin", 16384, 16384), ("darwin", 4096, 4096), ("linux", 4096, 4096), ("linux", 65536, 4096)],
)
def test_the_unit_of_direct_reads(platform: str, page: int, unit: int) -> None:
    assert direct.direct_unit(platform, page) == unit


def test_a_call_has_no_more_destinations_than_the_system_takes(file: Path) -> None:
    parts, buffers = pieces([(n * 10, 10) for n in range(3000)])
    r = reader(file, Stats())
    r.submit(parts, "expert").wait()
    r.close()
    assert b"".join(buffers) == file.read_bytes()[:30_000]


def test_compressed_files_of_apfs_are_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert direct.compressed_files([file]) == []
    real = Path.stat

    def flagged(self: Path, **options: bool) -> object:
        return SimpleNamespace(**{n: getattr(real(self), n) for n in ("st_size", "st_uid")}, st_flags=0x20 | 0x1)

    monkeypatch.setattr(Path, "stat", flagged)
    assert direct.compressed_files([file]) == [file]
