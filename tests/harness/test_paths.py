"""Folders of a command: a study by folder or name, the results folder, and a user's own files before shipped ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import ResultsError
from harness.paths import find_study, own_file, own_folders, own_spaces, results_folder


def test_a_study_is_found_by_folder_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "mill"
    folder.mkdir(parents=True)
    with pytest.raises(ResultsError, match="mill is neither a study's folder nor the name of a study"):
        find_study("mill")
    (folder / "manifest.json").write_text("{}")
    assert find_study("mill") == find_study("results/mill") == find_study(str(folder)) == folder
    with pytest.raises(ResultsError, match="did you mean mill"):
        find_study("mlil")


def test_results_go_to_the_current_folder_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert results_folder() == tmp_path / "results"


def test_own_files_come_before_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("mine/prompts/own.yaml", "experiments/prompts/own.yaml", "mine/search_spaces/a.yaml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("")
    assert own_folders("mine") == [tmp_path / "mine", tmp_path, tmp_path / "experiments"]
    assert own_file("own.yaml", "mine") == tmp_path / "mine" / "prompts" / "own.yaml"
    assert own_file("own.yaml") == tmp_path / "experiments" / "prompts" / "own.yaml"
    assert own_file("missing.yaml") == Path("missing.yaml")
    assert list(own_spaces("mine")) == [tmp_path / "mine" / "search_spaces" / "a.yaml"]
