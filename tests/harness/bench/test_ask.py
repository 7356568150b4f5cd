"""Benchmark of the storage: it fills a study, and measures proposals and results in it."""

from __future__ import annotations

from pathlib import Path

from harness.bench import ask


def test_proposals_and_results_are_timed_in_a_filled_study(tmp_path: Path) -> None:
    rows = ask.fill(tmp_path, 12)
    figures = ask.cost(tmp_path, rows, "tpe")
    assert figures["ask_ms"] > 0 and figures["tell_ms"] > 0
    assert [row["trial"] for row in rows] == list(range(1, 13 + ask.TURNS + 1))
