"""Ahead: which predictions a trace of a run holds."""

from __future__ import annotations

from pathlib import Path

from engine import Knobs
from engine.routing.traces.ahead import COLUMN, Ahead, ahead_for, ahead_of_run, column_of, experts_predicted


def test_a_run_records_what_it_predicts_itself() -> None:
    knobs = Knobs(cache_gb=1, prefetch="stale_gate", prefetch_depth=2, prefetch_width=1.3)
    assert ahead_of_run(knobs, [0, 1, 2, 3], 8) == Ahead((1, 2), (11,))
    assert ahead_of_run(knobs, [0, 4, 5], 8) == Ahead((1, 4, 5), (11,))  # layers between them hold every expert
    assert ahead_of_run(knobs, [3], 8) == Ahead((), (11,))
    assert ahead_of_run(Knobs(cache_gb=1), [0, 1], 8) is None


def test_widths_are_numbers_of_experts() -> None:
    assert ahead_for(2, [1, 1.01, 2, 0.5], 4) == Ahead((1, 2), (2, 4, 5, 8))
    assert experts_predicted(1.25, 6) == 8
    found = COLUMN.fullmatch(column_of(2, 8))
    assert found is not None and found.groups() == ("2", "8")


def test_a_trace_without_predictions_needs_no_router(tmp_path: Path) -> None:
    from engine.routing.traces.ahead import routers_ahead

    assert routers_ahead({}, None, ["a.b", "c.d"], None) == [[], []]  # type: ignore[arg-type]
