"""Printed commands: pasted into a shell, they use the setting with the study's engine and model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import HERE, ROOT, Cli
from synthetic import row

from engine import Knobs
from engine.setting.setting_file import read_setting
from harness.best.commands import commands_of, confirm_more, setting_of, shell_path
from harness.decisions.recommend import Choice

KIMI_MINI = ROOT / "experiments" / "kimi_mini" / "checkpoint"


def paste(command: str, cwd: Path) -> str:
    """What a shell prints for a command; `python` is the interpreter of the tests."""
    path = os.pathsep.join((str(HERE), str(ROOT)))
    line = f'python() {{ "{sys.executable}" "$@"; }}; {command}'
    done = subprocess.run(
        ["bash", "-c", line], cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def folder_of(place: Path, model: Path, module: str = "engine", command: str | None = None) -> Path:
    """A study's folder with what its manifest says of model and engine."""
    config = {
        "model": {"path": str(model)}, "engine": {"module": module, "command": command}, "confirm": {"share": 0.5},
        "protocol": {"warm_up_tokens": 1, "timed_tokens": 4, "page_cache": "as_is"},
    }  # fmt: skip
    folder = place / "my study"
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"command": "python -m harness.search study=demo", "config": config}))
    return folder


def test_the_commands_name_the_study_and_the_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = folder_of(tmp_path, KIMI_MINI)
    commands = commands_of(folder, Choice("fastest", "the fastest", 3))
    assert list(commands) == ["serve", "chat", "generate", "measure"]
    assert commands["serve"] == "python -m engine serve --from 'my study' --pick fastest"
    assert commands["generate"] == "python -m engine generate --from 'my study' --pick fastest --prompt 'The water wheel'"
    assert commands_of(folder, 7)["measure"] == "python -m engine measure --from 'my study' --trial 7"
    assert commands_of(folder, "default")["chat"] == "python -m engine chat --from 'my study' --pick default"


def test_the_knobs_of_a_row_without_the_limit_for_measuring() -> None:
    values = {"cache_gb": 0.01, "read_threads": 2, "ssd_gbps": 0.1, "expert_bits": 4, "verify_reads": False}
    assert setting_of(row(3, values, (1, 1, 1))) == Knobs(cache_gb=0.01, read_threads=2, expert_bits=4)
    assert setting_of(row(3, values, (1, 1, 1)), search=True).ssd_gbps == 0.1


def test_a_foreign_engine_is_run_by_its_own_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import json, sys\nasked = json.load(sys.stdin)\nprint(json.dumps({**asked['knobs'], 'judge': asked['judge']}))\n"
    )
    folder = folder_of(tmp_path, KIMI_MINI, command="python mine.py --fast")
    command = commands_of(folder, 3, row(3, {"cache_gb": 0.01, "ssd_gbps": 0.1}, (1, 1, 1)))["run"]
    assert command.endswith("| python mine.py --fast")
    knobs = json.loads(paste(command, tmp_path))
    assert (knobs["cache_gb"], knobs["ssd_gbps"], knobs["judge"]) == (0.01, None, "my study/judge.yaml")


def test_an_engine_in_python_is_loaded_and_measured(place: Path, cli: Cli) -> None:
    assert cli("budget.trials=2")[0] == 0
    folder = place / "results" / "demo"
    assert "decode_tok_s=" in paste(commands_of(folder, 1)["run"], place)
    assert commands_of(folder, 99) == {}
    files = [read_setting(path) for path in (folder / "best").glob("*.yaml")]
    assert files and all(setting.engine == {"module": "fake_engine"} for setting in files)
    command = confirm_more(folder)
    assert command is not None and command.endswith("confirm.share=0.5"), "there was none"
    assert str(place) not in command


def test_without_a_manifest_the_folder_of_the_model_is_left_to_the_reader(tmp_path: Path) -> None:
    assert "--model DIR " in commands_of(tmp_path, "fastest")["generate"]
    foreign = row(3, {"cache_gb": 0.01}, (1, 1, 1)) | {"engine": "./measure --fast"}
    assert commands_of(tmp_path, 3, foreign)["run"].endswith("| ./measure --fast")
    assert confirm_more(tmp_path) is None


def test_a_path_is_as_short_as_a_shell_can_read_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    assert shell_path(tmp_path / "a b" / "c") == "'a b/c'"
    assert shell_path(Path("/home/someone/models/Kimi K2")) == "~/'models/Kimi K2'"
    assert shell_path(Path("/Volumes/x")) == "/Volumes/x"
