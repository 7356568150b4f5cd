"""Bench bits: plans are compared at equal bytes, and options without effect are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.__main__ import main

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def test_bench_bits_compares_at_equal_bytes(checkpoint: Make, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 12)
    path = str(checkpoint("deepseek_v3", None, True))
    command = ["bench", "bits", path, "--rounds", "2", "--average-bits", "3", "--judge", str(tmp_path / "mine.txt")]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    stored, low, uniform, high, *mixed = result["rows"]
    assert stored["kl"] == [0.0] and stored["average_bits"] == 16
    assert [row["bits_by"] for row in (low, uniform, high)] == ["uniform 2", "uniform 3", "uniform 4"]
    assert low["kl"] > uniform["kl"] > high["kl"]
    assert [row["bits_by"] for row in mixed] == ["random", "frequency"]
    assert {row["gb"] for row in mixed} == {uniform["gb"]}
    assert all(kl > 0 for row in (uniform, *mixed) for kl in row["kl"])
    assert len(mixed[0]["kl"]) == 2 and len(set(mixed[0]["kl"])) == 2
    assert main([*command, "--hot-share", "0.5"]) == 2
    assert "--hot-share has no effect: bench bits" in capsys.readouterr().err
