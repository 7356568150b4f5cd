"""Tests of `bench open`: the parts in this process, and a child's error."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import HeadraceError
from engine.bench.opening import (
    bench_open,
    in_its_own_process,
    open_and_plan,
    open_as_known,
    open_with_mlx_lm,
    take_fingerprint,
)
from engine.checkpoint.checkpoint import Checkpoint


def test_opening_and_planning(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("deepseek_v3", None, True)
    result, source = open_and_plan(path), Checkpoint.open(path)
    assert (result["tensors"], result["files"], result["layers"]) == (source.tensors, len(source.files), 3)
    assert result["experts_gb"] == source.expert_bytes / 1e9 and result["peak_gb"] > 0
    assert 3 * source.top_k <= result["slots"] < 3 * 16, "half of the experts have slots"


def test_mlx_lm_finds_the_same_switches(checkpoint: Callable[..., Path]) -> None:
    assert open_with_mlx_lm(checkpoint("deepseek_v3", None, True))["switches"] == 3


def test_what_a_search_knows_opens_the_same_checkpoint(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path, file = checkpoint("deepseek_v3", None, True), tmp_path / "known"
    first = take_fingerprint(path, file)
    assert first["file_bytes"] == file.stat().st_size > 0 and first["s"] >= 0
    assert open_as_known(path, file)["peak_gb"] > 0
    file.write_bytes(b"")
    with pytest.raises(HeadraceError, match="changed while it was opened"):
        open_as_known(path, file)


def test_a_part_in_its_own_process(checkpoint: Callable[..., Path]) -> None:
    result = in_its_own_process("headrace", checkpoint("deepseek_v3", None, True))
    assert result["layers"] == 3 and result["peak_gb"] > 0


def test_an_error_in_the_child_is_an_error_here(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="nowhere is not a folder"):
        bench_open(tmp_path / "nowhere")
