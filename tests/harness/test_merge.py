"""The merge command: exit status, printed counts and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from stored import ONE, TWO, fill

from harness.merge import main


def test_it_prints_the_rows_of_each_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = fill(tmp_path / "a", range(2), ONE), fill(tmp_path / "b", range(2, 3), TWO)
    assert main([str(tmp_path / "out"), a, b]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["2", "rows"], ["1", "rows"], ["3", "rows"]]
    assert main([str(tmp_path / "out"), a]) == 2
    assert capsys.readouterr().err.count("\n") == 1
