"""Tests of `bench decode`: settings, ceilings and windows, on the model's own routing and on a forced one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traces import routing, write_trace

from engine import HeadraceError, Knobs
from engine.bench.decoding import decode
from engine.bench.machine import plain_reads
from engine.checkpoint.checkpoint import Checkpoint
from engine.measure.judge import Judge
from engine.routing.read import read_trace

DEFAULTS: dict[str, Any] = {
    "judge": None, "trace": None, "window_recall": None, "rounds": 1, "cached": [0.5], "windows": [1], "resident": False,
    "mixed": False, "tokens": 4,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_reads, "PLAIN_MIB", 8)


def test_own_routing_against_the_resident_model(checkpoint: Callable[..., Path], judge: Judge) -> None:
    options = DEFAULTS | {"judge": judge, "resident": True, "cached": [0.5, 1.0], "windows": [0]}
    result = decode.bench_decode(checkpoint("deepseek_v3", None, True), Knobs(cache_gb=1), **options)
    resident, full, half = result["rows"]
    assert [row["cached"] for row in result["rows"]] == [None, 1.0, 0.5]
    assert resident["share_of_resident"][1] == pytest.approx(1) and resident["passes_per_window"] is None
    assert full["hit_rate"] > half["hit_rate"] and half["passes_per_window"] > 1
    assert 0 < half["share_of_overlapped"][1] < half["share_of_serial"][1]
    assert result["eval_fingerprint"] == judge.fingerprint and result["rounds"] == 1


def test_forced_routing_with_and_without_a_limit(random_model: Path, tmp_path: Path) -> None:
    trace = read_trace(write_trace(tmp_path / "t.parquet", routing(40, 4, 4, 16)))
    options = DEFAULTS | {"trace": trace, "windows": [1, 0], "window_recall": [0.6, 0.9], "tokens": 10}
    result = decode.bench_decode(random_model, Knobs(cache_gb=1), **options)
    json.dumps(result)
    assert [row["window"] for row in result["rows"]] == ["1", "all", "all, all predicted"]
    _, limited, unlimited = result["rows"]
    assert unlimited["window_recall_by_pass"][0] == 1 > limited["window_recall_by_pass"][0]
    assert unlimited["passes_per_window"] <= 2 < limited["passes_per_window"] + 1
    assert limited["share_of_resident"] is None, "there is no resident model to compare with"
    assert result["eval_fingerprint"] is None and result["tokens_a_turn"] == 10


def test_mixtures_are_two_widths_and_both_together(checkpoint: Callable[..., Path], store: Callable[..., Path]) -> None:
    source = Checkpoint.open(checkpoint("qwen3_moe", 4))
    high, low, both = decode.mixtures(source, Knobs())
    assert (high, low) == ({"expert_bits": 4}, {"expert_bits": 2})
    assert (both["expert_bits"], both["cold_bits"], both["hot_share"]) == (4, 2, 0.5)
    packed = Checkpoint.open(store("qwen3_moe", 4, levels=(2, 4)))
    assert [m["expert_bits"] for m in decode.mixtures(packed, Knobs())] == [4, 2, 4]
    with pytest.raises(HeadraceError, match="cold_bits=2 is not below expert_bits=2; give two widths"):
        decode.mixtures(source, Knobs(expert_bits=2))
