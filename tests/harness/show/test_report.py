"""The report: a study without a front, and without any row."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import row

from harness.results.metrics import OBJECTIVES
from harness.show.report import report


def test_a_study_without_a_front_prints_the_last_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = [row(t, {"cache_gb": 0.02}, (0.0, 0.0, 0.0), status="oom", status_reason="too much") for t in (1, 2)]
    report(tmp_path, [{**r, **dict.fromkeys(OBJECTIVES)} for r in failed])
    out = capsys.readouterr().out
    assert "no feasible trial yet; last error: too much" in out
    assert f"page  {tmp_path / 'report.html'}" in out and "too much" in (tmp_path / "report.html").read_text()


def test_the_report_says_where_the_time_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    times = {"session": "a", "between_s": 1.0, "session_s": 11.0, "wall_s": 10.0, "timed_s": 4.0}
    report(tmp_path, [row(1, {"cache_gb": 0.02}, (0.0, 0.0, 0.0), status="oom", status_reason="too much", **times)])
    out = capsys.readouterr().out
    assert "where the time went: 1 run in 10 s, of which 0.0% is timed decoding" in out
    assert [line.split() for line in out.splitlines() if line.startswith("lost to")] == [
        ["lost", "to", "failures", "10.0", "90.9%", "0.0"]
    ]


def test_a_study_without_rows_has_a_page_that_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tmp_path, [])
    assert "page  " in capsys.readouterr().out
    assert "No trial has run yet." in (tmp_path / "report.html").read_text()
