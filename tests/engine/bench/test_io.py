"""bench io: share of plain reads, and the bandwidth reached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import Knobs, ReadError
from engine.bench.io import bench_io


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    paths = tmp_path / "a", tmp_path / "b"
    for path, size in zip(paths, (20 << 20, 5_000_001), strict=True):
        path.write_bytes(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    return paths


@pytest.mark.parametrize("io_mode", ["buffered", "direct"])
def test_bench_io_says_share_and_source(files: tuple[Path, ...], io_mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    knobs = Knobs(cache_gb=1, io_mode=io_mode, read_block_kib=256)
    result = bench_io(files[0], knobs, rounds=2, mib=8, expert_kib=700)
    assert result["share"] == result["measured_gbps"] / result["ceiling_gbps"]
    assert (result["expert_kib"], result["read_block_kib"], result["io_mode"]) == (700, 256, io_mode)
    out = capsys.readouterr().out
    assert "share of the ceiling" in out and result["drop_cache"] in out


def test_bench_io_reports_the_bandwidth_held(files: tuple[Path, ...], capsys: pytest.CaptureFixture[str]) -> None:
    result = bench_io(files[1], Knobs(cache_gb=1, ssd_gbps=0.02), rounds=1, mib=8, expert_kib=1024)
    assert 0 < result["held_share"] <= 1.001 and 0 < result["held_share_in_bursts"] <= 1.001
    assert result["ssd_gbps"] == 0.02 and "requested" in capsys.readouterr().out


def test_bench_io_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nowhere cannot be opened"):
        bench_io(tmp_path / "nowhere", Knobs(cache_gb=1), rounds=1, mib=8, expert_kib=None)
