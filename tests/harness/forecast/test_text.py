"""Tests of the text of a forecast."""

from __future__ import annotations

import dataclasses

from harness.forecast.text import _seconds, report, verdict
from tests.harness.forecast.test_forecast import made


def test_the_verdict_is_one_sentence() -> None:
    found = made("m2max_96gb")
    said = verdict(found)
    assert said.startswith("DeepSeek V4 Flash at 4 bits on m2max_96gb: ") and said.count(". ") == 0
    assert "limited by" in said and f"about {found.least_trials} to {found.trials} trials" in said
    nothing = dataclasses.replace(found, best=dataclasses.replace(found.best, fits=False))
    assert "does not fit on m2max_96gb" in verdict(nothing)


def test_the_report_explains_its_marks() -> None:
    text = report(made("m1_8gb"))
    assert "  * after packing to these bits" in text and "  ! more than the" in text
    assert "locality" in text and "first token  at least" in text


def test_durations() -> None:
    assert [_seconds(s) for s in (3, 90, 150, 9000, 999999)] == ["3 s", "90 s", "2.5 min", "2.5 h", "278 h"]
