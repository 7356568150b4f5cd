"""Tests of plain reads: every byte once, from any first block."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine import Knobs
from engine.bench.machine.plain_reads import PLAIN_BLOCK, plain_reads

SIZE = (20 << 20) + 5_000_001


@pytest.mark.parametrize("io_mode", ["buffered", "direct"])
@pytest.mark.parametrize("first", [0, 2, 1001])
def test_every_byte_is_read_once(files: tuple[Path, ...], io_mode: str, first: int) -> None:
    knobs = Knobs(cache_gb=1, io_mode=io_mode, read_threads=3)
    assert plain_reads(files, knobs, 1 << 30, first) == SIZE


def test_the_limit_is_rounded_up_to_blocks(files: tuple[Path, ...]) -> None:
    knobs = Knobs(cache_gb=1, read_threads=2)
    assert plain_reads(files, knobs, PLAIN_BLOCK) == PLAIN_BLOCK
    assert plain_reads(files, knobs, PLAIN_BLOCK + 1) == 2 * PLAIN_BLOCK
    assert plain_reads(files, knobs, PLAIN_BLOCK, first=2) == 4 << 20, "the last block of the first file"
