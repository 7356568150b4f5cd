"""The benchmarks' tools: turns, the plain reads that are the ceiling, and the way to a cold page cache."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engine import Knobs, ReadError
from engine.bench import packing
from engine.bench.contender import Contender, in_turns, ratios
from engine.bench.io import bench_io
from engine.bench.plain_reads import plain_reads
from engine.bench.quality.grids import _best as best_grid
from engine.bench.quality.grids import bench_grids
from engine.system.page_cache import drop_cache


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    paths = tmp_path / "a", tmp_path / "b"
    for path, size in zip(paths, (20 << 20, 5_000_001), strict=True):
        path.write_bytes(np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8).tobytes())
    return paths


def test_arms_take_turns_in_both_orders() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    arms = [Contender("a", lambda: run("a")), Contender("b", lambda: run("b"))]
    in_turns(arms, 3)
    assert "".join(order) == "abbaab"
    assert ratios(arms[0], arms[1]) == pytest.approx((5 / 6, 2 / 3, 13 / 12))  # of 1/2, 4/3 and 5/6


@pytest.mark.parametrize("io_mode", ["buffered", "direct"])
@pytest.mark.parametrize("first", [0, 2, 1001])
def test_plain_reads_take_every_byte_once(files: tuple[Path, ...], io_mode: str, first: int) -> None:
    knobs = Knobs(cache_gb=1, io_mode=io_mode, read_threads=3)
    assert plain_reads(files, knobs, 1 << 30, first) == (20 << 20) + 5_000_001
    assert plain_reads(files, knobs, 8 << 20) == 8 << 20


def test_linux_drops_pages_with_posix_fadvise(files: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []
    monkeypatch.setattr("engine.system.page_cache.sys.platform", "linux")
    monkeypatch.setattr(os, "POSIX_FADV_DONTNEED", 4, raising=False)
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *rest: asked.append((os.fstat(fd).st_size, *rest)), raising=False)
    assert drop_cache(files) == "posix_fadvise"
    assert asked == [(file.stat().st_size, 0, 0, 4) for file in files]
    monkeypatch.delattr(os, "posix_fadvise")
    assert drop_cache(files) == "not possible"


def test_macos_drops_pages_with_msync(files: tuple[Path, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of every file, page-aligned as msync wants it; an empty one cannot be mapped and has no pages."""
    asked: list[tuple[int, int, int]] = []

    def msync(address: Any, length: Any, flags: int) -> int:
        asked.append((address.value % mmap.PAGESIZE, length.value, flags))
        return 0

    (files[0].parent / "empty").touch()
    monkeypatch.setattr("engine.system.page_cache.sys.platform", "darwin")
    assert drop_cache([*files, files[0].parent / "empty"], SimpleNamespace(msync=msync)) == "msync"
    assert asked == [(0, file.stat().st_size, 2) for file in files]
    assert drop_cache(files, SimpleNamespace(msync=lambda *_: -1)) == "not possible"


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
    assert result["ssd_gbps"] == 0.02 and "asked for" in capsys.readouterr().out


def test_bench_io_of_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"nowhere cannot be opened"):
        bench_io(tmp_path / "nowhere", Knobs(cache_gb=1), rounds=1, mib=8, expert_kib=None)


def test_bench_grids_is_between_the_best_and_mlx(
    checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench_grids(checkpoint("mixtral", None), weights=1 << 14)
    assert [row["group_size"] for row in result["rows"]] == [32, 64, 128] * 4
    for row in result["rows"]:
        assert row["best"] < row["prefix"] * 1.02 and row["prefix"] < row["prefix_of_mlx"] < row["mlx_low"]
        assert row["whole"] <= row["mlx_high"] * (1 + 1e-6) and row["prefix_in_32"] <= row["prefix"] * (1 + 1e-6)
        assert row["prefix_share"] == row["prefix"] / row["mlx_low"]
    assert "…" not in capsys.readouterr().out


def test_the_best_grid_is_found() -> None:
    """Weights that lie on four evenly spaced values have no error; others at least as little as descent from many starts."""
    codes = np.random.default_rng(0).integers(0, 4, (3, 32))
    assert best_grid((codes * 0.37 - 2).astype(np.float32)) == pytest.approx(0, abs=1e-9)
    weights = np.random.default_rng(1).standard_normal((20, 32))
    least = 0.0
    for group in weights:
        errors = []
        for width in np.linspace(0.3, 1, 25):
            scale, bias = np.ptp(group) * width / 3, group.mean() - np.ptp(group) * width / 2
            for _ in range(20):
                h = np.clip(np.rint((group - bias) / scale), 0, 3)
                if np.ptp(h) == 0:
                    break
                scale, bias = np.polyfit(h, group, 1)
                errors.append(((group - scale * h - bias) ** 2).sum())
        least += min(errors)
    assert least * 0.95 < best_grid(weights.astype(np.float32)) <= least * (1 + 1e-6)


def test_bench_pack_packs_every_layout(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(packing, "ROWS", 128)
    monkeypatch.setattr(packing, "COLUMNS", 256)
    monkeypatch.setattr(packing, "POOL", 1 << 14)
    monkeypatch.setattr(packing, "TOKENS", 4)
    result = packing.bench_pack(checkpoint("qwen3_moe", 4), rounds=2, mib=0)
    assert [row["source"] for row in result["rows"]] == list(packing.SOURCES)
    assert all(row["pack_mb_s"][1] > 0 and row["mb"] > 0.2 for row in result["rows"])
    assert result["verify"]["read_mb_per_token"] > 0 and "verify_reads" in capsys.readouterr().out
