"""The command line: text and figures on stdout; one line on stderr and exit status 2 for a user's mistake."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.__main__ import main
from engine.routing.read import read_trace

ROOT = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]


def test_measure_and_inspect_print_json(checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    path = str(checkpoint("deepseek_v3", None, True))
    (tmp_path / "mine.txt").write_text("The wheel turns when there is water. " * 12)
    assert main(["measure", "--model", path, "--eval-texts", str(tmp_path / "mine.txt")]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] > 1
    command = ["measure", "--model", path, "--eval-texts", str(tmp_path / "mine.txt"), "--by-layer"]
    assert main([*command, "--cache-gb", "0.0005", "--trace-out", str(tmp_path / "t.parquet")]) == 0
    table, _, figures = capsys.readouterr().out.partition("{")
    rows = [line.split() for line in table.splitlines()[2:]]
    assert [r[0] for r in rows] == ["0", "1", "2"]
    assert sum(int(r[-1]) for r in rows) == json.loads("{" + figures)["bytes_read"]
    assert read_trace(tmp_path / "t.parquet").experts.shape[1:] == (3, 4)
    assert main(command) == 0
    assert capsys.readouterr().out.startswith("nothing is streamed: no layer reads anything\n{")
    assert main(["inspect", "--model", path, "--expert-bits", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["one_token_gb"] > 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["generate", "--prompt", "x", "--model", "nowhere"], "checkpoint nowhere is not a folder"),
        (["generate", "--prompt", "x", "--expert-bits", "7"], "expert_bits=7 is not a width"),
        (["generate", "--prompt", "", "--model", "TINY"], "the prompt is empty"),
        (["measure", "--model", "TINY", "--eval-texts", "none.txt"], "judge none.txt cannot be read"),
        (["measure", "--model", "TINY", "--cache-gb", "1e-6"], "is below one token's experts"),
        (["generate", "--model", "TINY", "--prompt", "x", "--trace-out", "no/t"], "the trace no/t cannot be written"),
    ],
)
def test_mistakes(checkpoint: Callable[..., Path], capsys: Capture, args: list[str], message: str) -> None:
    tiny = str(checkpoint("deepseek_v3", None, True))
    assert main([tiny if a == "TINY" else a for a in args]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and captured.err.startswith("error: ")


def test_the_model_is_given_once(checkpoint: Callable[..., Path], capsys: Capture) -> None:
    path = str(checkpoint("deepseek_v3", None, True))
    assert main(["plan", path, "--model", path]) == 2
    assert "are two checkpoints; give one, with --model" in capsys.readouterr().err
    for given in ([path], ["--model", path]):
        assert main(["plan", *given, "--expert-bits", "4"]) == 0
        assert json.loads(capsys.readouterr().out.splitlines()[-1])["plan"] == path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "pack needs a checkpoint and the folder of the store: --model CHECKPOINT STORE; or a store with --verify"),
        (["a"], "--model a STORE"),
        (["--model", "a"], "--model a STORE"),
        (["--model", "a", "b", "c"], "pack takes one store, not b and c"),
    ],
)
def test_pack_says_what_it_needs(capsys: Capture, words: list[str], message: str) -> None:
    assert main(["pack", *words]) == 2
    assert message in capsys.readouterr().err


def test_pack_takes_the_model_as_an_option(checkpoint: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    store = str(tmp_path / "store")
    assert main(["pack", "--model", str(checkpoint("qwen3_moe", 4)), store]) == 0
    assert main(["pack", store, "--verify"]) == 0
    assert "all records match their checksums" in capsys.readouterr().out
