"""Tests of `bench trace`: both contenders decode the same tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Knobs
from engine.bench.decoding import trace
from engine.measure.judge import Judge


def test_share_of_the_speed_with_a_trace(
    checkpoint: Callable[..., Path], judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trace, "TURNS", 2)
    result = trace.bench_trace(checkpoint("deepseek_v3", None, True), Knobs(), judge, rounds=1)
    json.dumps(result)
    assert result["turns"] == 2 and result["mode"] == "reference float32 cpu"
    assert result["share_quartiles"][0] <= result["share"] <= result["share_quartiles"][1]
    assert "2 turns of" in capsys.readouterr().out
