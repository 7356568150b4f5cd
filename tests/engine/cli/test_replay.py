"""The command `replay`: a setting's figures with a model or a knob, otherwise a table of policies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from traces import routing, write_trace

from engine import Judge, Knobs, Protocol, footprint, load
from engine.__main__ import main
from engine.measure.judge import Text

Capture = pytest.CaptureFixture[str]
TEXT = "The headrace brings the water to the wheel. "


def test_figures_equal_a_measurement(checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    path, judge = checkpoint("deepseek_v3"), Judge((Text("a", "prose", TEXT, TEXT[:20]),))
    cache_gb = footprint(path).one_token_gb * 2
    with load(path, Knobs(cache_gb=cache_gb)) as engine, engine.trace(tmp_path / "t.parquet"):
        measured = engine.measure(judge, Protocol(timed_tokens=10))
    command = ["replay", str(tmp_path / "t.parquet"), "--model", str(path), "--cache-gb", repr(cache_gb)]
    assert main([*command, "--exact", "--timed-tokens", "10", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    names = ("misses", "reads", "bytes_read", "slots", "hits", "prefetch_issued", "prefill_chunk_used", "decode_tokens")
    assert figures["exact"] and {n: figures[n] for n in names} == {n: getattr(measured, n) for n in names}
    assert figures["knobs"]["cache_gb"] == cache_gb
    assert main([*command, "--prefetch", "stale_gate"]) == 0
    out = capsys.readouterr().out
    assert f"{'slots':<24}{measured.slots}\n" in out and "\nnot exact: trace " in out
    assert main([*command, "--prefetch", "stale_gate", "--exact"]) == 2
    error = capsys.readouterr().err
    assert "no exact replay: trace " in error and error.endswith("leave out --exact for an inexact one\n")
    assert main([*command, "--slots", "8"]) == 2
    assert "--slots has no effect: replay of a setting takes slots" in capsys.readouterr().err


def test_without_a_setting_it_is_a_table(tmp_path: Path, capsys: Capture) -> None:
    file = str(write_trace(tmp_path / "t.parquet", routing(50, 2, 4, 32)))
    assert main(["replay", file]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["experts"] == 32
