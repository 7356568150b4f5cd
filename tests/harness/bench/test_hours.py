"""The benchmark of a study's time: a study that has run, and one that it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stored import row

from harness.bench import hours
from harness.bench.__main__ import main
from harness.results.writing import write_row

RUN = {"session": "a", "between_s": 1.0, "wall_s": 9.0, "timed_s": 4.5, "session_s": 10.0}


def study(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"identity": {}, "config": {}}')
    write_row(folder, row(1, **RUN))


def test_a_study_that_has_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study(tmp_path / "demo")
    assert main(["hours", "--study", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert "1 run in 9 s, of which 50.0% is timed decoding" in out and "clock of the search" in out
    assert main(["hours", "--study", str(tmp_path / "demo"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["timed_share"], found["clock_s"], found["command_s"]) == (0.5, 10.0, None)


def test_older_rows_are_not_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "old").mkdir()
    write_row(tmp_path / "old", row(1, wall_s=9.0))
    assert main(["hours", "--study", str(tmp_path / "old")]) == 0
    assert "the time of 1 run in 9 s is not recorded by part" in capsys.readouterr().out


def test_a_study_that_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def searched(results: Path, overrides: list[str]) -> None:
        asked.append(overrides)
        study(results / "demo")

    monkeypatch.setattr(hours, "searched", searched)
    assert main(["hours", "--results", str(tmp_path / "kept"), "budget.trials=4"]) == 0
    assert asked == [["budget.trials=4"]] and "the command took" in capsys.readouterr().out
    assert main(["hours", "--json"]) == 0  # in a folder that is removed
    assert json.loads(capsys.readouterr().out)["command_s"] >= 0
    study(tmp_path / "kept" / "another")
    monkeypatch.setattr(hours, "searched", lambda results, overrides: None)
    assert main(["hours", "--results", str(tmp_path / "kept")]) == 2
    assert "holds 2 studies; give --results a folder without studies" in capsys.readouterr().err


def test_mistakes_are_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["hours", "--study", str(tmp_path), "budget.trials=4"]) == 2
    assert "leave out --results and overrides" in capfd.readouterr().err
    assert main(["hours", "--results", str(tmp_path / "new"), "budget.trails=4"]) == 2
    assert "the search ended with exit status 2; its reason is above" in capfd.readouterr().err
