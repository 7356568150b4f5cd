"""Known passes: another process reads what one predicted, damaged files are ignored, and other models have other files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.checkpoint import Checkpoint
from engine.plan.memory import activations
from engine.plan.memory.known import known_pass, pass_file, store_pass


def test_a_prediction_is_kept(checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(activations, "_KNOWN", {})
    source = Checkpoint.open(checkpoint("qwen3_moe"))
    first = activations.pass_memory(source, context=70, chunk=40)
    (file,) = (tmp_path / "headrace").glob("pass-*.json")

    def opened_again(*_: Any) -> Any:
        raise AssertionError("the model was opened again")

    monkeypatch.setattr(activations, "_model_of", opened_again)
    assert activations.pass_memory(source, context=70, chunk=40) is first
    monkeypatch.setattr(activations, "_KNOWN", {})  # as in another process
    assert activations.pass_memory(source, context=70, chunk=40) == first
    file.write_text("{")
    monkeypatch.setattr(activations, "_KNOWN", {})
    with pytest.raises(AssertionError, match="opened again"):
        activations.pass_memory(source, context=70, chunk=40)


def test_files_of_other_keys_and_of_other_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    file = pass_file(("digest", 8, None, 512, 128))
    assert file != pass_file(("digest", 8, 4, 512, 128)) and known_pass(file, ["kv"]) is None
    store_pass(file, {"kv": 7})
    assert known_pass(file, ["kv"]) == {"kv": 7} and known_pass(file, ["kv", "activations"]) is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    store_pass(pass_file(("digest",)), {"kv": 7})  # a folder that cannot be written is no error
