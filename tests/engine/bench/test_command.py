"""Tests of the command `bench`: each benchmark has the options that it uses, and its last line is JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.__main__ import main
from engine.bench import command

ROUTING = Path(__file__).parents[3] / "experiments" / "kimi_mini" / "routing_trace.parquet"
Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    "options",
    [
        ["io", "--sync-window", "all"],
        ["decode", "--cache-gb", "0.01"],
        ["lossy", "--cold-drop", "1"],
        ["bits", "--hot-share", "0.5"],
        ["open", "--rounds", "3"],
        ["grids", "--cache-gb", "0.01"],
    ],
)
def test_an_option_of_another_benchmark_is_refused(capsys: Capture, options: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *options])
    assert ended.value.code == 2 and f"unrecognized arguments: {options[1]}" in capsys.readouterr().err


def test_a_trace_leaves_no_choice_to_a_prefetcher(capsys: Capture) -> None:
    assert main(["bench", "decode", "--trace", str(ROUTING), "--prefetch", "stale_gate"]) == 2
    assert "--prefetch has no effect: bench decode --trace" in capsys.readouterr().err
    assert main(["bench", "decode", "--trace", str(ROUTING), "--windows", "all"]) == 2
    assert "--trace with windows needs --window-recall" in capsys.readouterr().err


def test_shapes_of_a_checkpoint_to_make(capsys: Capture, tmp_path: Path) -> None:
    assert command.main(["make", str(tmp_path), "--shape", "qwen3_30b"], "headrace bench engine") == 2
    assert "shape qwen3_30b is unknown; did you mean qwen3_30b_a3b?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["io", "hits", "decode"])
def test_the_last_line_is_json(
    checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("engine.bench.decoding.hits.TOKENS", 5)
    monkeypatch.setattr("engine.bench.machine.plain_reads.PLAIN_MIB", 8)
    (tmp_path / "texts.txt").write_text("The wheel turns when there is water. " * 12)
    options = ["--eval-texts", str(tmp_path / "texts.txt"), "--cached", "0.5"] if name == "decode" else []
    assert main(["bench", name, str(checkpoint("deepseek_v3", None, True)), "--rounds", "1", *options]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["bench"] == name
