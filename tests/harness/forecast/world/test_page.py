"""Tests of the page: it and the stored fit are what the commands print, and enough measurements are inside."""

from __future__ import annotations

from pathlib import Path

from harness.forecast.world.calibration import FILE
from harness.forecast.world.page import fit_text, page, rows

PAGE = Path(__file__).resolve().parents[4] / "docs" / "evidence" / "forecast.md"


def test_the_page_is_what_the_command_prints() -> None:
    assert page() == PAGE.read_text(encoding="utf-8")


def test_the_stored_fit_is_what_the_command_prints() -> None:
    assert fit_text() == FILE.read_text(encoding="utf-8")


def test_three_of_four_are_inside() -> None:
    found = rows()
    assert len(found) >= 12 and sum(one.measured.tokens_per_s in f for one, f in found) >= 0.75 * len(found)
