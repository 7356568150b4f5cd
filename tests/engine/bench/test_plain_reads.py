"""Plain reads take every byte once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import Knobs
from engine.bench.plain_reads import plain_reads


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    paths = tmp_path / "a", tmp_path / "b"
    for path, size in zip(paths, (20 << 20, 5_000_001), strict=True):
        path.write_bytes(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    return paths


@pytest.mark.parametrize("io_mode", ["buffered", "direct"])
@pytest.mark.parametrize("first", [0, 2, 1001])
def test_plain_reads_take_every_byte_once(files: tuple[Path, ...], io_mode: str, first: int) -> None:
    knobs = Knobs(cache_gb=1, io_mode=io_mode, read_threads=3)
    assert plain_reads(files, knobs, 1 << 30, first) == (20 << 20) + 5_000_001
    assert plain_reads(files, knobs, 8 << 20) == 8 << 20
