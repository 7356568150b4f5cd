"""Tests of `bench grids`: the order of the errors, and the best possible grid."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine.bench.quality.grids import bench_grids, best_error


def test_errors_are_between_the_best_grid_and_mlx(
    checkpoint: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    result = bench_grids(checkpoint("mixtral", None), weights=1 << 14)
    json.dumps(result)
    assert [row["group_size"] for row in result["rows"]] == [32, 64, 128] * 4
    for row in result["rows"]:
        assert row["best"] < row["prefix"] * 1.02 and row["prefix"] < row["prefix_of_mlx"] < row["mlx_low"]
        assert row["whole"] <= row["mlx_high"] * (1 + 1e-6) and row["prefix_in_32"] <= row["prefix"] * (1 + 1e-6)
        assert row["prefix_share"] == row["prefix"] / row["mlx_low"]
    assert "…" not in capsys.readouterr().out


def test_the_best_grid_is_found() -> None:
    """Weights on four evenly spaced values have no error; for others, no descent from 25 starts finds a smaller one."""
    codes = np.random.default_rng(0).integers(0, 4, (3, 32))
    assert best_error((codes * 0.37 - 2).astype(np.float32)) == pytest.approx(0, abs=1e-9)
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
    assert least * 0.95 < best_error(weights.astype(np.float32)) <= least * (1 + 1e-6)
