"""Spans: seconds by part, where inner spans are not part of outer ones."""

from __future__ import annotations

import time

import pytest

from engine.measure.spans import FILL, PREFIX, Spans


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that spans see, as its only element."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_an_inner_span_is_not_part_of_the_outer_one(clock: list[float]) -> None:
    spans = Spans()
    with spans.part(PREFIX):
        clock[0] += 3.0
        with spans.part(FILL):
            clock[0] += 2.0
            with spans.part(PREFIX):
                clock[0] += 0.5
        clock[0] += 1.0
    with spans.part(FILL):
        clock[0] += 4.0
    assert spans.take() == {PREFIX: 4.5, FILL: 6.0}
    assert spans.take() == {}


def test_a_span_that_fails_is_counted_and_closed(clock: list[float]) -> None:
    spans = Spans()

    def fail() -> None:
        with spans.part(PREFIX), spans.part(FILL):
            clock[0] += 1.0
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    with spans.part(PREFIX):
        clock[0] += 1.0
    assert spans.take() == {PREFIX: 1.0, FILL: 1.0}
