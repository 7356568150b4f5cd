"""Tests of `bench prefill`: chunks and prompts, the bytes that must be read, and both kinds of routing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from traces import routing, write_trace

from engine import HeadraceError, Knobs
from engine.bench.decoding.prefill import bench_prefill
from engine.bench.machine import plain_reads
from engine.measure.judge import Judge
from engine.routing.read import read_trace

DEFAULTS: dict[str, Any] = {"judge": None, "trace": None, "rounds": 1, "cached": [0.5], "resident": False}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_reads, "PLAIN_MIB", 8)


def test_larger_chunks_must_read_less(checkpoint: Callable[..., Path], judge: Judge) -> None:
    path = checkpoint("deepseek_v3", None, True)
    options = DEFAULTS | {"judge": judge, "resident": True, "prompts": [60, 90], "chunks": [8, 30, 0]}
    result = bench_prefill(path, Knobs(cache_gb=1), **options)
    json.dumps(result)
    auto = result["auto_chunk"]
    rows = {(row["prompt"], row["cached"], row["chunk"]): row for row in result["rows"]}
    assert set(rows) == {(p, share, c) for p in (60, 90) for share in (None, 0.5) for c in (8, 30, auto)}
    assert "a pass takes" in result["auto_reason"]
    for prompt in (60, 90):
        must = [rows[prompt, 0.5, chunk]["must_read_gb"] for chunk in (8, 30, auto)]
        assert must[0] > must[1] > must[2] > 0
        for chunk in (8, 30, auto):
            row, resident = rows[prompt, 0.5, chunk], rows[prompt, None, chunk]
            assert row["must_read_gb"] <= row["read_gb"] and resident["read_gb"] == resident["must_read_gb"] == 0
            assert row["compute_s"] == pytest.approx(resident["ttft_s"][1]) and row["pass_gb"] > 0
            assert 0 < row["share_of_overlapped"][1] <= row["share_of_serial"][1]
            assert resident["share_of_serial"] is None and resident["share_of_resident"][1] == pytest.approx(1)
    assert rows[90, 0.5, 8]["speed_over_first_chunk"][1] == 1


def test_forced_routing_on_random_tokens(random_model: Path, tmp_path: Path) -> None:
    trace = read_trace(write_trace(tmp_path / "t.parquet", routing(40, 4, 4, 16)))
    options = DEFAULTS | {"trace": trace, "prompts": [50], "chunks": [16], "cached": [0.25]}
    (row,) = bench_prefill(random_model, Knobs(cache_gb=1), **options)["rows"]
    assert row["compute_s"] is None and row["share_of_resident"] is None and row["share_of_serial"][1] > 0
    experts = 16 - 4  # a chunk of 16 tokens uses all; a quarter has a slot
    assert row["must_read_gb"] * 1e9 == pytest.approx((4 * 3 - 1 * 3) * experts * 14336 + 0, rel=0.15)


def test_a_prompt_above_the_context_is_refused(random_model: Path) -> None:
    with pytest.raises(HeadraceError, match=r"--prompts 999999 is above the \d+ tokens of small's context"):
        bench_prefill(random_model, Knobs(cache_gb=1), **DEFAULTS, prompts=[8, 999999], chunks=[16])
