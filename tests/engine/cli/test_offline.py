"""The offline child: one process for each job whose result stays in the user's cache folder."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import Checkpoint
from engine.cli.offline import main
from engine.routing.profile import profile_file, routing_profile

TEXTS = [["The miller opens the headrace. ", "The wheel begins to turn and the stones grind the corn."]]


def run(monkeypatch: pytest.MonkeyPatch, job: str, **request: Any) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    return main([job])


def test_a_profile_is_stored_under_the_name_that_the_engine_looks_for(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint("deepseek_v3", None, True)
    assert run(monkeypatch, "profile", checkpoint=str(path)) == 0
    file = Path(capsys.readouterr().out.splitlines()[-1])
    source = Checkpoint.open(path)
    assert file == profile_file(source) and file.exists()
    assert routing_profile(source).uses.shape == (len(source.layers), source.layers[0].experts)


def test_a_folder_without_a_checkpoint_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "routing", checkpoint=str(tmp_path), texts=TEXTS, timed_tokens=4) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


def test_an_unknown_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "choose from" in capsys.readouterr().err
