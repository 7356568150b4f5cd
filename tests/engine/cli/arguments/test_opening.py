"""Commands open the tokenizer before the model, and `--trust-code` is an option of each that opens one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from engine.__main__ import main
from engine.__main__ import parser as _parser

OPEN = ("generate", "chat", "measure", "quality", "serve", "plan", "profile", "bench decode", "bench lossy", "bench bits",
        "bench trace", "bench serve")  # fmt: skip


@pytest.mark.parametrize("command", OPEN)
def test_every_command_that_opens_a_tokenizer_has_the_option(command: str) -> None:
    args = _parser("headrace").parse_args([*command.split(), "--trust-code"])
    assert args.trust_code and not _parser("headrace").parse_args(command.split()).trust_code


@pytest.mark.parametrize("command", [["generate", "--prompt", "a"], ["chat"], ["measure"], ["quality"]])
def test_a_wrong_tokenizer_ends_a_command_before_the_model_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    path = tiny.make(tmp_path / "checkpoint", "qwen3_moe", bits=4)
    described = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(described))

    def unreached(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("engine.engine.load", unreached)
    assert main([*command, "--model", str(path)]) == 2
    assert "--trust-code" in capsys.readouterr().err


def test_trust_that_has_no_effect_is_a_note(tmp_path: Path) -> None:
    path = tiny.make(tmp_path / "checkpoint", "qwen3_moe", bits=4)
    command = [sys.executable, "-m", "engine", "generate", "--model", str(path), "--prompt", "a", "-m", "1", "--trust-code"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "note: --trust-code has no effect" in done.stderr
