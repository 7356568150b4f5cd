"""Setting of a study: its file where that is current, else the one that a child process computes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import HeadraceError
from engine.setting.setting_file import Setting
from engine.setting.study_setting import setting_from, study_folder


def study(place: Path) -> Path:
    folder = place / "results" / "mine"
    (folder / "best").mkdir(parents=True)
    (folder / "trials.parquet").touch()
    (folder / "best" / "fastest_lossless.yaml").write_text(Setting("fastest_lossless", {"cache_gb": 1.0}).to_yaml())
    return folder


def test_the_file_of_a_study_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert study_folder("mine") == study_folder("results/mine") == study_folder(folder) == folder
    assert study_folder("other") is None
    setting = setting_from("mine")
    assert setting.for_use().cache_gb == 1
    assert setting.source == "results/mine/best/fastest_lossless.yaml"


def test_a_file_older_than_the_rows_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study(tmp_path)
    file = folder / "best" / "fastest_lossless.yaml"
    rows = (folder / "trials.parquet").stat().st_mtime
    os.utime(file, (rows - 60, rows - 60))
    with pytest.raises(HeadraceError) as e:
        setting_from(folder)
    assert "\n" not in str(e.value)
