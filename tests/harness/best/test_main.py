"""`python -m harness.best`: one setting as a file that the engine runs; a mistake is one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from engine.__main__ import main as engine_main
from engine.setting.setting_file import read_setting
from engine.setting.study_setting import setting_from
from harness.best.__main__ import main


def test_a_setting_is_printed_and_written(demo: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo.parents[1])
    assert main(["demo", "--trial", "18"]) == 0
    printed = capsys.readouterr().out
    assert main(["results/demo", "--trial", "18", "--out", str(tmp_path / "mine.yaml")]) == 0
    assert (tmp_path / "mine.yaml").read_text().splitlines()[3:50] == printed.splitlines()[3:50]
    assert capsys.readouterr().out.startswith("trial 18 of demo_ssd_0.1: ")


def test_the_engine_runs_a_trial_of_a_study(demo: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine starts this command as a child process."""
    monkeypatch.chdir(demo.parents[1])
    assert engine_main(["generate", "--from", "demo", "--trial", "18", "--prompt", "The mill", "--max-tokens", "2"]) == 0
    said = capsys.readouterr()
    assert "note: trial 18 of demo_ssd_0.1, not confirmed, from the rows of demo" in said.err
    assert "decode:      2 tokens" in said.err


def test_a_pick_is_the_same_with_and_without_its_file(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(demo.parents[1])
    child = setting_from("demo", "fastest")
    main(["demo", "--pick", "fastest", "--out", str(tmp_path / "fastest.yaml")])
    file = read_setting(tmp_path / "fastest.yaml")
    assert (child.knobs, child.measured, child.model) == (file.knobs, file.measured, file.model)


def test_mistakes_are_one_line(demo: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = tmp_path / "results" / "damaged"
    shutil.copytree(demo, damaged)
    (damaged / "trials.parquet").write_bytes(b"PAR1 no rows PAR1")
    empty = tmp_path / "results" / "empty"
    empty.mkdir()
    (empty / "manifest.json").write_text("{}")
    for arguments, message in (
        (["nothing"], "nothing is neither a study's folder nor the name of a study"),
        (["empty"], "has no trials"),
        (["damaged"], "trials.parquet"),
        ([str(demo), "--pick", "fastes"], "did you mean fastest?"),
        ([str(demo), "--out", str(tmp_path / "none" / "a.yaml")], "cannot be written"),
    ):
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
