"""bench trace: turns of the same tokens, with and without a trace."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.__main__ import main

Capture = pytest.CaptureFixture[str]


def test_bench_trace_compares_turns_of_the_same_tokens(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.bench.decoding.trace.TURNS", 2)
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 20)
    path = str(checkpoint("deepseek_v3", None, True))
    assert main(["bench", "trace", path, "--rounds", "2", "--judge", str(tmp_path / "mine.txt")]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["turns"] == 4 and result["mode"] == "reference float32 cpu"
    assert 0.1 < result["share"] < 10 and result["share_quartiles"][0] <= result["share"] <= result["share_quartiles"][1]
