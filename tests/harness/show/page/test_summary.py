"""The summary: its parts are those of the analysis, and nothing is there without rows."""

from __future__ import annotations

from pathlib import Path

from made import rows_of, summary_of

from harness.analysis.pareto import front
from harness.results.rows import frame


def test_the_parts_are_those_of_the_analysis(tmp_path: Path) -> None:
    rows = rows_of()
    summary = summary_of(tmp_path, rows)
    assert summary.front.equals(front(frame(rows)))
    assert (summary.name, summary.title) == ("made", "tiny on a machine with M9 (8 cores)")
    assert set(summary.used) == {c.trial for c in summary.choices} - {None}
    assert summary.default == 1 and summary.importance.points == len(summary.standings)


def test_without_rows(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, [])
    assert summary.name == tmp_path.name and summary.title == "" and summary.default is None
    assert not summary.choices and not summary.named and not len(summary.front) and not summary.importance.points


def test_a_damaged_manifest_is_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    assert summary_of(tmp_path, []).config == {}
