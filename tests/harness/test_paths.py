"""Folders of a command: results in the checkout or the current folder, and the order in which own files are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.system.shipped import EXPERIMENTS, PROMPTS, ROOT
from harness import ResultsError
from harness.paths import find_study, own_file, own_folders, own_spaces, results_folder


def test_results_of_a_command_inside_and_outside_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for inside in (ROOT, ROOT / "docs"):
        monkeypatch.chdir(inside)
        assert results_folder() == ROOT / "results"
    monkeypatch.chdir(tmp_path)
    assert results_folder() == tmp_path / "results"


def test_the_shipped_folder_is_not_one_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert own_folders() == [ROOT] and EXPERIMENTS not in own_folders(EXPERIMENTS)


def test_the_config_dir_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("config", "experiments", "."):
        (tmp_path / place / "search_spaces").mkdir(parents=True)
        (tmp_path / place / "search_spaces" / "mine.yaml").touch()
    assert own_folders("config") == [tmp_path / "config", tmp_path, tmp_path / "experiments"]
    assert [p.parents[1] for p in own_spaces("config")] == own_folders("config")


def test_a_prompt_file_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As given, then in the folder of `--config-dir` and its prompts, then the shipped one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config" / "prompts").mkdir(parents=True)
    assert own_file("json_v1.yaml", "config") == PROMPTS / "json_v1.yaml"
    assert own_file("nowhere.txt", "config") == Path("nowhere.txt")
    (tmp_path / "config" / "prompts" / "mine.txt").touch()
    assert own_file("mine.txt", "config") == tmp_path / "config" / "prompts" / "mine.txt"
    (tmp_path / "config" / "mine.txt").touch()
    assert own_file("mine.txt", "config") == tmp_path / "config" / "mine.txt"
    (tmp_path / "mine.txt").touch()
    assert own_file("mine.txt", "config") == Path("mine.txt")


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
