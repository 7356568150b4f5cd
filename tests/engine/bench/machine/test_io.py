"""Tests of `bench io`: its figures, its table and its errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import CheckpointError, Knobs, ReadError
from engine.bench.machine.io import bench_io


@pytest.mark.parametrize("io_mode", ["buffered", "direct"])
def test_share_of_the_ceiling_and_source_of_the_bytes(
    files: tuple[Path, ...], io_mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    knobs = Knobs(cache_gb=1, io_mode=io_mode, read_block_kib=256)
    result = bench_io(files[0], knobs, rounds=1, mib=8, expert_kib=700)
    assert result["share"] == result["measured_gbps"] / result["ceiling_gbps"]
    assert (result["expert_kib"], result["read_block_kib"], result["io_mode"]) == (700, 256, io_mode)
    out = capsys.readouterr().out
    assert "share of the ceiling" in out and result["drop_cache"] in out


def test_simulated_bandwidth_is_not_exceeded(files: tuple[Path, ...], capsys: pytest.CaptureFixture[str]) -> None:
    result = bench_io(files[1], Knobs(cache_gb=1, ssd_gbps=0.02), rounds=1, mib=8, expert_kib=1024)
    assert 0 < result["held_share"] <= 1.001 and 0 < result["held_share_in_bursts"] <= 1.001
    assert result["ssd_gbps"] == 0.02 and "requested" in capsys.readouterr().out


def test_experts_of_a_checkpoint_are_read_by_default(checkpoint: Callable[..., Path]) -> None:
    result = bench_io(checkpoint("deepseek_v3", None, True), Knobs(cache_gb=1), rounds=1, mib=1, expert_kib=None)
    assert result["expert_kib"] == 3 * 64 * 32 * 2 / 1024, "three bf16 projections of 64 x 32"


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nowhere cannot be opened"):
        bench_io(tmp_path / "nowhere", Knobs(cache_gb=1), rounds=1, mib=8, expert_kib=None)


def test_a_small_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(bytes(1000))
    with pytest.raises(CheckpointError, match="no 1024 KiB to read; give a larger file"):
        bench_io(tmp_path / "small", Knobs(cache_gb=1), rounds=1, mib=8, expert_kib=None)
