"""bench memory: settings that are legal, and predictions beside measurements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engine import Checkpoint, Knobs
from engine.bench.memory import WITHIN, bench_cache_limits, bench_memory, settings


def test_settings_are_legal_and_differ(checkpoint: Callable[..., Path]) -> None:
    some = settings(Checkpoint.open(checkpoint("qwen3_moe", 4)), 6)
    assert len({str(s) for s in some}) == 6 and some[0] == ({}, 512)
    assert all(Knobs.from_mapping(given).streams for given, _ in some[1:])


def test_a_prediction_is_near(checkpoint: Callable[..., Path]) -> None:
    result = bench_memory(checkpoint("qwen3_moe"), 1)
    assert abs(result["rows"][0]["ratio"] - 1) < 2 * WITHIN


def test_limits_are_compared(checkpoint: Callable[..., Path]) -> None:
    result = bench_cache_limits(checkpoint("qwen3_moe"), Knobs(), [0, 4], 1)
    assert [row["limit_mb"] for row in result["rows"]] == [0, 4]
