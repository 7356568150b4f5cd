"""bench bits: uniform widths, random plans and plans by frequency at the same budget."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bench.quality.bits import bench_bits
from engine.knobs import Knobs
from engine.measure.judge import Judge


def test_rows_of_every_choice(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 12)
    judge, knobs = Judge.load(tmp_path / "mine.txt"), Knobs(expert_bits=4, cold_bits=2)
    result = bench_bits(checkpoint("qwen3_moe", 4), knobs, judge, average_bits=[3.0], draws=2)
    json.dumps(result)
    rows = {row["bits_by"]: row for row in result["rows"]}
    assert list(rows) == ["as stored", "uniform 2", "uniform 3", "uniform 4", "random", "frequency"]
    assert len(rows["random"]["kl"]) == 2 and rows["frequency"]["average_bits"] == pytest.approx(3, abs=0.1)
    assert rows["uniform 4"]["kl"][0] < 1e-6 < rows["uniform 2"]["kl"][0]
    assert capsys.readouterr().out.count("\n") == 2 + len(rows)
