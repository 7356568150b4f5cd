"""Setting files of a study: written again, removed with their rule, and a user's own left as they are."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from engine.setting.setting_file import read_setting
from harness import ResultsError
from harness.analysis.pareto import Analysis
from harness.best.settings import settings_of
from harness.best.write import write_best
from harness.decisions.recommend import recommended, wishes_of


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "best").glob("*.yaml"))


def test_files_are_written_and_removed_and_a_users_own_stay(demo: Path, found: Analysis) -> None:
    assert write_best(demo, found) == []
    assert names(demo) == ["fastest.yaml", "fastest_lossless.yaml", "least_memory.yaml"]
    settings = settings_of(demo, found, recommended(found, **wishes_of(demo)))
    for name, setting in settings.items():
        assert (demo / "best" / f"{name}.yaml").read_text() == setting.to_yaml()
    fastest = demo / "best" / "fastest.yaml"
    edited = fastest.read_text().replace("read_threads: 8", "read_threads: 2")
    fastest.write_text(edited)
    own = {"mine.yaml": "format: 1\nknobs: {}\n", "fastest_in_memory.yaml": "my own notes"}
    for name, text in own.items():
        (demo / "best" / name).write_text(text)
    left = write_best(demo, found)
    assert [line.partition(" ")[0] for line in left] == ["best/fastest.yaml", "best/fastest_in_memory.yaml"]
    assert fastest.read_text() == edited and read_setting(fastest).edited
    assert write_best(demo, found, []) == left, "no rule selects a trial"
    assert names(demo) == ["fastest.yaml", *sorted(own)]
    for name, text in own.items():
        assert (demo / "best" / name).read_text() == text
    for name in names(demo):
        (demo / "best" / name).unlink()
    assert write_best(demo, found, []) == [] and not (demo / "best").exists()


def test_a_link_is_a_users_own(demo: Path, found: Analysis, tmp_path: Path) -> None:
    (demo / "best").mkdir(exist_ok=True)
    (tmp_path / "mine.yaml").write_text("mine")
    (demo / "best" / "fastest.yaml").symlink_to(tmp_path / "mine.yaml")
    assert len(write_best(demo, found)) == 1 and (tmp_path / "mine.yaml").read_text() == "mine"
    (demo / "best" / "fastest.yaml").unlink()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_one_line(demo: Path, found: Analysis) -> None:
    write_best(demo, found)
    place = demo / "best"
    place.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(ResultsError, match="cannot be written"):
            write_best(demo, found)
    finally:
        place.chmod(stat.S_IRWXU)


def test_a_file_in_the_place_of_the_folder_is_one_line(demo: Path, found: Analysis) -> None:
    write_best(demo, found, [])
    (demo / "best").write_text("a file")
    with pytest.raises(ResultsError, match="best cannot be written"):
        write_best(demo, found)
    assert write_best(demo, found, []) == []
    (demo / "best").unlink()


def test_a_study_without_rows_has_no_files(tmp_path: Path, found: Analysis) -> None:
    assert write_best(tmp_path, found.df.head(0)) == [] and not (tmp_path / "best").exists()
