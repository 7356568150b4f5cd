"""Tests of `bench beside`: both checkouts decode in turns, and the figures belong to the right one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from traces import routing, write_trace

from engine import Knobs
from engine.bench.beside import beside
from engine.bench.beside.beside import Work, bench_beside
from engine.bench.decoding.decode import Setting
from engine.bench.machine import plain_reads
from engine.system.shipped import PACKAGES


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A copy of this checkout."""
    ignored = shutil.ignore_patterns("__pycache__", "*.cpp", "*.hpp")
    shutil.copytree(PACKAGES / "engine", tmp_path / "other" / "engine", ignore=ignored)
    return tmp_path / "other"


def test_a_copy_of_this_checkout(
    random_model: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plain_reads, "PLAIN_MIB", 8)
    monkeypatch.setattr(beside, "TOKENS", 5)
    trace = write_trace(tmp_path / "t.parquet", routing(40, 4, 4, 16))
    result = bench_beside(
        other, random_model, Knobs(cache_gb=1), Work(Path("unused"), trace, 8), other_model=None, cached=[0.5],
        windows=[1], misses=[1], rounds=1, profile=True,
    )  # fmt: skip
    json.dumps(result)
    (row,), (bookkeeping,) = result["rows"], result["bookkeeping"]
    assert (result["this"], result["other"]) == (str(PACKAGES), str(other)) and row["window"] == "1"
    assert row["this"]["hit_rate"] == row["other"]["hit_rate"] < 1, "both decode the same tokens"
    for side in row["this"], row["other"]:
        ms = side["ms_per_token"]
        assert ms["io"] > 0 < ms["sync"] and ms["wall"] > ms["rest"] > 0
        assert sum(side["samples_ms"].values()) == pytest.approx(ms["wall"])
        assert side["share_of_overlapped"][1] <= side["share_of_serial"][1]
    assert bookkeeping["counted"] == [1, 1] and bookkeeping["this_us"][1] > 0
    printed = capsys.readouterr().out
    assert "50.0%" in printed and "waiting for reads" in printed and "bookkeeping, us per layer" in printed


def test_windows_are_in_words() -> None:
    assert beside._window(Setting(1.0, Knobs(cache_gb=1))) == "-"
    assert beside._window(Setting(0.5, Knobs(cache_gb=1))) == "1"
    assert beside._window(Setting(0.5, Knobs(cache_gb=1, sync_window=0))) == "all"
