"""Checks: a value, no value and an error, as results."""

from __future__ import annotations

from pathlib import Path

from harness.doctor.check import FAILS, NO_VALUE, WORKS, Answer, Check, Place

HERE = Place(Path())


def test_the_three_states() -> None:
    def fail(place: Place) -> Answer | None:
        raise OSError("first line\nsecond line")

    works = Check("disk", "a", lambda place: Answer("2 GB/s", {"gbps": 2.0})).result(HERE)
    assert (works.state, works.text, works.figures) == (WORKS, "2 GB/s", {"gbps": 2.0})
    assert Check("disk", "b", lambda place: None).result(HERE).state == NO_VALUE
    failed = Check("disk", "c", fail).result(HERE)
    assert (failed.state, failed.reason, failed.figures) == (FAILS, "first line", {})
