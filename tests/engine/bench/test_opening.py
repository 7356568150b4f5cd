"""bench open: both parts run in processes of their own, and an error of theirs is one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bench.opening import bench_open
from engine.errors import HeadraceError


def test_sizes_and_seconds(checkpoint: Callable[..., Path]) -> None:
    result = bench_open(checkpoint("qwen3_moe", 4))
    json.dumps(result)
    assert result["layers"] == result["mlx_lm"]["switches"] == 5 and result["slots"] > 0
    assert 0 < result["open_s"] < 60 and result["peak_gb"] > 0 and result["mlx_lm"]["peak_gb"] > 0


def test_an_error_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match=r"has no config\.json"):
        bench_open(tmp_path)
