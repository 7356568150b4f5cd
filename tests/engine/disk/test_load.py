"""Loads: pieces are cut into blocks, and a cancelled load ends cleanly."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from reads import pieces, reader

from engine import ReadError
from engine.disk.load import cut
from engine.stats import Stats


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


def test_blocks_of_direct_reads_share_no_page() -> None:
    parts, buffers = pieces([(100, 9_000), (9_100, 20_000), (50_000, 10)])
    blocks = list(cut(parts, 8192, 4096))
    assert [(b.offset, b.offset + b.nbytes) for b in blocks] == [
        (100, 12288), (12288, 20480), (20480, 28672), (28672, 29100), (50_000, 50_010)
    ]  # fmt: skip
    assert sum(b.nbytes for b in blocks) == sum(map(len, buffers))


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


def test_nothing_to_read_is_there_at_once(file: Path) -> None:
    finished: list[bool] = []
    r = reader(file, Stats())
    r.submit([], "expert", finish=lambda: finished.append(True)).wait()
    r.close()
    assert finished == [True]
