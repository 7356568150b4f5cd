"""Memory: bytes read from the disk, and the share that came from the page cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Judge, Knobs, footprint, load
from engine.measure.judge import Text
from engine.system.memory import _linux_io, disk_bytes_written, page_cache_share

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until night. "
JUDGE = Judge((Text("a", "prose", TEXT[:40], TEXT[:30]), Text("b", "prose", TEXT[::-1][:40], TEXT[30:60])))


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


def test_direct_reads_come_from_the_disk_and_cached_ones_do_not(path: Path) -> None:
    smallest = footprint(path).one_token_gb
    shares = {}
    for mode in ("buffered", "direct"):
        with load(path, Knobs(cache_gb=smallest, io_mode=mode)) as engine:
            engine.logits(engine.encode(TEXT))  # brings every page in
            m = engine.measure(JUDGE)
        shares[mode] = m.page_cache_share
        assert m.disk_bytes_read is not None and m.disk_bytes_read >= (m.bytes_read if mode == "direct" else 0)
    assert shares["buffered"] is not None and shares["buffered"] > 0.9
    assert shares["direct"] == 0


def test_page_cache_share() -> None:
    assert page_cache_share(25, 100) == 0.75
    assert page_cache_share(130, 100) == 0
    assert page_cache_share(None, 100) is None and page_cache_share(0, 0) is None


def test_disk_bytes_where_the_system_says(tmp_path: Path) -> None:
    io = tmp_path / "io"
    io.write_text("rchar: 9\nwchar: 8\nsyscr: 1\nsyscw: 1\nread_bytes: 40960\nwrite_bytes: 512\ncancelled_write_bytes: 7\n")
    assert _linux_io("read_bytes", str(io)) == 40960 and _linux_io("write_bytes", str(io)) == 512
    assert _linux_io("read_bytes", str(tmp_path / "none")) is None
    io.write_text("rchar: 9\n")
    assert _linux_io("read_bytes", str(io)) is None


def test_bytes_written_are_counted(tmp_path: Path) -> None:
    before = disk_bytes_written()
    if before is None:
        pytest.skip("this system does not count them")
    with open(tmp_path / "file", "wb") as f:
        f.write(os.urandom(1 << 20))
        os.fsync(f.fileno())
    written = disk_bytes_written()
    assert written is not None and written >= before
