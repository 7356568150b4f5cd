"""Files of a study: written whole, and errors name the path and the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import ResultsError
from harness.results.files import write_json, write_text


def test_a_file_is_written_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "one")
    write_json(tmp_path / "a.json", {"one": 1})
    assert (tmp_path / "a.txt").read_text() == "one" and '"one": 1' in (tmp_path / "a.json").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.txt"]


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    for write in (lambda path: write_text(path, ""), lambda path: write_json(path, {})):
        with pytest.raises(ResultsError, match=r"nowhere/a cannot be written \(.*\); .*, then run the same command again"):
            write(tmp_path / "nowhere" / "a")
