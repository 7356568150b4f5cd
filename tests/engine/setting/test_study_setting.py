"""Setting of a study: its file where that is current, else the one that a child process computes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from engine.errors import HeadraceError
from engine.setting.setting_file import Setting
from engine.setting.study_setting import ROWS, rows_digest, setting_from, study_folder


def study(place: Path) -> Path:
    folder = place / "results" / "mine"
    (folder / "best").mkdir(parents=True)
    (folder / "trials.parquet").touch()
    (folder / "best" / "fastest_lossless.yaml").write_text(Setting("fastest_lossless", {"cache_gb": 1.0}).to_yaml())
    (folder / "best" / ROWS).write_text(rows_digest(folder))
    return folder


def test_the_file_of_a_study_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = study(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert study_folder("mine") == study_folder("results/mine") == study_folder(folder) == folder
    assert study_folder("other") is None
    setting = setting_from("mine")
    assert setting.for_use().cache_gb == 1
    assert setting.source == "results/mine/best/fastest_lossless.yaml"


def test_times_of_files_do_not_matter(tmp_path: Path) -> None:
    folder = study(tmp_path)
    os.utime(folder / "trials.parquet", (2e9, 2e9))
    assert setting_from(folder).for_use().cache_gb == 1
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert setting_from(copy).for_use().cache_gb == 1


@pytest.mark.parametrize("change", ["a row more", "other rows", "no digest"])
def test_a_file_of_other_rows_is_not_used(tmp_path: Path, change: str) -> None:
    folder = study(tmp_path)
    if change == "a row more":
        (folder / "trials").mkdir()
        (folder / "trials" / "part-000001-00.parquet").write_bytes(b"PAR1")
    elif change == "other rows":
        (folder / "trials.parquet").write_bytes(b"x")
    else:
        (folder / "best" / ROWS).unlink()
    os.utime(folder / "best" / "fastest_lossless.yaml", (2e9, 2e9))  # a clock that was an hour ahead when it was written
    with pytest.raises(HeadraceError) as e:
        setting_from(folder)
    assert "\n" not in str(e.value)
