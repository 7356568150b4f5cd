"""Loads: ranges are cut into blocks, and a cancelled load ends cleanly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reads import inside, nbytes_of, ranges, raw_reader, reader, until

from engine.native import core


@pytest.mark.parametrize("block", [1, 7, 100, 1000])
def test_cut_joins_what_touches_and_keeps_to_the_block_size(file: Path, block: int) -> None:
    places = [(100, 30), (0, 50), (50, 50), (400, 1), (130, 5)]
    parts, buffers = ranges(places)
    with open(file, "rb") as opened:
        native = raw_reader(opened.fileno(), block_bytes=block)
        native.record(True)
        assert native.submit(parts).wait() is None
        calls = native.calls()
    assert all(0 < nbytes_of(call) <= block for call in calls)
    assert sum(nbytes_of(call) for call in calls) == sum(inside(calls, b) for b in buffers) == 136
    for (offset, n), buffer in zip(places, buffers, strict=True):
        assert bytes(buffer) == file.read_bytes()[offset : offset + n]
    assert len(calls) == -(-135 // block) + 1
    assert [offset for _, offset, _, _ in calls] == [*range(0, 135, block), 400]


def test_blocks_of_direct_reads_share_no_page(file: Path) -> None:
    """100 .. 12288 .. 20480 .. 28672 .. 29100 and 50000 .. 50010, each widened to pages."""
    parts, buffers = ranges([(100, 9_000), (9_100, 20_000), (50_000, 10)])
    with open(file, "rb") as opened:
        native = raw_reader(opened.fileno(), alignment=4096, memory=4096, block_bytes=8192)
        native.record(True)
        assert native.submit(parts).wait() is None
        calls = native.calls()
    assert [(call[1], call[1] + nbytes_of(call)) for call in calls] == [
        (0, 12288), (12288, 20480), (20480, 28672), (28672, 32768), (49152, 53248)
    ]  # fmt: skip
    assert b"".join(buffers) == file.read_bytes()[100:29_100] + file.read_bytes()[50_000:50_010]


def test_a_cancelled_load_is_not_read(file: Path) -> None:
    r = reader(file, threads=1, kib=4)
    r.native.hold(True)
    first = r.native.submit(ranges([(0, 10)])[0])
    parts, (buffer,) = ranges([(4096, 40_000)])
    guess = r.native.submit(parts, True)
    assert guess.cancel() and guess.done  # at once: nothing of it had begun
    failure = guess.wait()
    assert failure is not None and str(r.error("guess", failure)) == "guess was not read: its load was cancelled"
    r.native.hold(False)
    assert first.wait() is None
    assert not first.cancel()
    assert first.wait() is None
    assert r.native.submit(ranges([(0, 10)])[0], True).wait() is None  # behind it
    r.close()
    assert not any(buffer) and r.native.totals == (2, 20)


def test_what_had_begun_of_a_cancelled_load_ends_before_join(file: Path) -> None:
    r = reader(file, threads=2, kib=4)
    r.native.hold(True)
    r.native.record(True)
    parts, (buffer,) = ranges([(4096, 40_000)])
    load = r.native.submit(parts, True)
    until(lambda: len(r.native.calls()) == 2)
    assert load.cancel() and not load.cancel()
    assert not load.done
    r.native.hold(False)
    failure = load.wait()
    r.close()
    assert failure is not None and failure[0] == core.CANCELLED and len(r.native.calls()) == 2
    assert bytes(buffer[:8192]) == file.read_bytes()[4096:12288] and not any(buffer[8192:])


def test_a_dropped_load_writes_no_more(file: Path) -> None:
    """Python's buffers are released when the load is, so its end waits for the reads that have begun."""
    r = reader(file, threads=2, kib=4)
    r.native.inject(delay_s=0.05, times=2)
    memory = np.zeros(40_000, np.uint8)
    load = r.native.submit([(0, 4096, memory.data)])
    del load
    before = memory.copy()
    r.close()
    assert np.array_equal(memory, before) and r.native.totals[0] <= 2


def test_nothing_to_read_is_there_at_once(file: Path) -> None:
    r = reader(file)
    load = r.native.submit([])
    assert load.done and load.wait() is None and not load.cancel()
    r.close()


@pytest.mark.parametrize("wrong", [[(1, 0)], [(-1, 0)], [(0, -5)]])
def test_ranges_outside_the_files_are_refused(file: Path, wrong: list[tuple[int, int]]) -> None:
    r = reader(file)
    with pytest.raises(ValueError, match="the reader has 1 files"):
        r.native.submit([(number, offset, memoryview(bytearray(8))) for number, offset in wrong])
    with pytest.raises((TypeError, BufferError)):
        r.native.submit([(0, 0, memoryview(bytes(8)))])
    r.close()
