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
from reads import Call, address, inside, nbytes_of, ranges, raw_reader, reader

from engine import KnobError
from engine.disk import direct
from engine.disk.reader import Reader
from engine.native import core


@pytest.mark.parametrize("phase", [0, 17, 1000, 4095])
@pytest.mark.parametrize("kib", [4, 16, 256])
def test_direct_reads_go_straight_where_the_address_allows(file: Path, phase: int, kib: int) -> None:
    """If destinations have the file's offsets within a page, only the pages at their ends pass through scratch."""
    memory = mmap.mmap(-1, 200_000)
    places = [(phase, 50_000), (phase + 50_000, 70_001)]
    r = reader(file, kib=kib, direct=True)
    r.native.record(True)
    assert r.native.submit([(0, offset, memoryview(memory)[offset : offset + n]) for offset, n in places]).wait() is None
    r.close()
    assert inside(r.native.calls(), memory) >= 120_001 - 4 * 4096
    assert memory[phase : phase + 120_001] == file.read_bytes()[phase : phase + 120_001]
    assert not any(memory[:phase]) and not any(memory[phase + 120_001 :])


@pytest.mark.parametrize(("offset", "memory", "straight"), [(0, 0, 8192), (0, 8, 0), (512, 512, 7680), (100, 0, 0)])
def test_only_whole_pages_at_fitting_addresses_go_straight(file: Path, offset: int, memory: int, straight: int) -> None:
    into = memoryview(mmap.mmap(-1, 16384))[memory : memory + 8192]
    with open(file, "rb") as opened:
        native = raw_reader(opened.fileno(), alignment=4096, memory=512)
        native.record(True)
        assert native.submit([(0, offset, into)]).wait() is None
        (call,) = native.calls()
    assert nbytes_of(call) == -(-(offset + 8192) // 4096) * 4096
    assert inside([call], into) == straight // 4096 * 4096
    assert into == file.read_bytes()[offset : offset + 8192]


@pytest.mark.parametrize("alignment", [1, 4096])
def test_short_and_interrupted_reads_go_on_where_they_stopped(file: Path, alignment: int) -> None:
    """Direct reads continue at a whole page, whatever number of bytes the system delivered."""
    parts, buffers = ranges([(5, 30_000), (30_005, 10)])
    with open(file, "rb") as opened:
        native = raw_reader(opened.fileno(), alignment=alignment, memory=alignment)
        native.record(True)
        for _ in range(20):
            native.inject(most=5000, times=1)
            native.inject(error=errno.EINTR, times=1)
        assert native.submit(parts).wait() is None
        offsets = [offset for _, offset, _, _ in native.calls()]
    assert bytes(buffers[0]) + bytes(buffers[1]) == file.read_bytes()[5:30_015]
    assert len(offsets) > 10 and all(a <= b for a, b in pairwise(offsets)) and len(set(offsets)) < len(offsets)
    assert alignment == 1 or all(offset % 4096 == 0 for offset in offsets)


def test_short_reads_of_the_systems_direct_reads(file: Path) -> None:
    parts, (buffer,) = ranges([(5, 60_000)])
    r = reader(file, direct=True, threads=1)
    r.native.inject(most=8192)
    r.native.inject(error=errno.EINTR, times=3)
    assert r.native.submit(parts).wait() is None
    r.close()
    assert bytes(buffer) == file.read_bytes()[5:60_005]


@pytest.mark.parametrize("direct_reads", [False, True])
def test_a_file_that_became_shorter_is_an_error(file: Path, direct_reads: bool) -> None:
    r = reader(file, direct=direct_reads)
    os.truncate(file, 1000)
    failure = r.native.submit(ranges([(900, 500)])[0]).wait()
    assert failure is not None and failure[0] == core.END_OF_FILE
    assert "unexpected end of file" in str(r.error("expert", failure))
    r.close()


def test_direct_where_the_file_system_refuses(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: Path, flags: int, *rest: int) -> int:
        if flags & getattr(os, "O_DIRECT", 0):
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(os, "open", refusing)
    with pytest.raises(KnobError, match=r"io_mode=direct is not possible for .*; use io_mode=buffered"):
        reader(file, direct=True)


PAGE = 16384


class FakeMac:
    """The readers of a Mac: pages of 16 KiB, F_NOCACHE, and one destination a call."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.requested: list[tuple[int, int]] = []
        monkeypatch.setattr("engine.disk.direct.sys.platform", "darwin")
        monkeypatch.setattr("engine.disk.direct.fcntl.fcntl", lambda fd, command, arg: self.requested.append((command, arg)))
        unit = partial(direct.direct_unit, "darwin", PAGE)
        monkeypatch.setattr("engine.disk.direct.direct_unit", unit)
        monkeypatch.setattr("engine.disk.reader.direct_unit", unit)

    def read(self, file: Path, parts: list[tuple[int, int, memoryview]], kib: int) -> list[Call]:
        r = Reader((file,), threads=4, block_bytes=kib * 1024, direct=True, gbps=None)
        r.native.record(True)
        assert r.native.submit(parts).wait() is None
        r.close()
        return r.native.calls()


def cached_by_xnu(call: Call) -> bool:
    """Whether F_NOCACHE would read this call through the page cache."""
    _, offset, into, _ = call
    return len(into) != 1 or offset % PAGE != 0 or into[0][0] % PAGE != 0 or into[0][1] % PAGE != 0


def aligned(nbytes: int, phase: int) -> memoryview:
    """Memory whose address modulo PAGE is `phase`."""
    whole = memoryview(mmap.mmap(-1, nbytes + 2 * PAGE))
    begin = (phase - address(whole)) % PAGE
    return whole[begin : begin + nbytes]


@pytest.mark.parametrize("kib", [4, 64, 4096])
@pytest.mark.parametrize("phase", [10, 0, 4096])
@pytest.mark.parametrize("places", [[(10, 5000)], [(10, 3_000_000)], [(16384, 2 << 20)], [(10, 99), (109, 1_500_000)]])
def test_every_call_of_macos_is_one_that_goes_past_the_page_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: list[tuple[int, int]], phase: int, kib: int
) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(3_200_001))
    mac = FakeMac(monkeypatch)
    first, end = places[0][0], sum(places[-1])
    memory = aligned(end - first, phase)
    calls = mac.read(file, [(0, at, memory[at - first :][:n]) for at, n in places], kib)
    assert mac.requested == [(48, 1)] and calls and not any(map(cached_by_xnu, calls))
    assert memory == file.read_bytes()[first:][: len(memory)]


def test_a_large_part_that_fits_goes_straight_on_macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(os.urandom(3_000_000))
    mac = FakeMac(monkeypatch)
    memory = aligned(2_000_000, 100)
    calls = mac.read(file, [(0, 100, memory)], 4096)
    assert len(memory) - inside(calls, memory) < 2 * PAGE and memory == file.read_bytes()[100:2_000_100]


@pytest.mark.parametrize(
    ("platform", "page", "unit"),
    [("darwin", 16384, 16384), ("darwin", 4096, 4096), ("linux", 4096, 4096), ("linux", 65536, 4096)],
)
def test_the_unit_of_direct_reads(platform: str, page: int, unit: int) -> None:
    assert direct.direct_unit(platform, page) == unit


def test_a_call_has_no_more_destinations_than_the_system_takes(file: Path) -> None:
    parts, buffers = ranges([(n * 10, 10) for n in range(3000)])
    r = reader(file)
    r.native.record(True)
    assert r.native.submit(parts).wait() is None
    r.close()
    assert max(len(into) for _, _, into, _ in r.native.calls()) == 1024
    assert b"".join(buffers) == file.read_bytes()[:30_000]


def test_compressed_files_of_apfs_are_found(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert direct.compressed_files([file]) == []
    real = Path.stat

    def flagged(self: Path, **options: bool) -> object:
        return SimpleNamespace(**{n: getattr(real(self), n) for n in ("st_size", "st_uid")}, st_flags=0x20 | 0x1)

    monkeypatch.setattr(Path, "stat", flagged)
    assert direct.compressed_files([file]) == [file]
