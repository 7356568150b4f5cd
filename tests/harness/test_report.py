"""The report command: a study by its name, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stored import ONE, fill

from harness import report


def test_a_study_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "results" / "mine", range(2), ONE)
    monkeypatch.chdir(tmp_path)
    reported: list[tuple[str, int]] = []
    monkeypatch.setattr(report, "report", lambda folder, rows: reported.append((folder.name, len(rows))))
    assert report.main(["mine", "results/mine"]) == 0
    assert reported == [("mine", 2)] * 2


def test_a_missing_study_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.main(["nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
