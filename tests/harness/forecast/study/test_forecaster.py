"""Tests of the forecaster: before any run, after runs, kept beside the rows, and where there is none."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from engine import Knobs
from engine.errors import HeadraceError
from harness.analysis.runs.forecasts import FORECAST
from harness.forecast.study import forecaster as module
from harness.forecast.study.forecaster import Forecaster, forecaster
from harness.forecast.study.text import started
from harness.study.study import Study

START = datetime(2026, 1, 1, tzinfo=UTC)
IDLE = SimpleNamespace(interrupted=lambda: False, prepare=lambda: None)


def row(trial: int, tok_s: float, values: dict[str, Any], **more: Any) -> dict[str, Any]:
    origin = "anchor" if trial else "reference"
    return {"trial": trial, "run": 0, "origin": origin, "status": "ok", "decode_tok_s": tok_s, "sequence": trial,
            "started_at": START + timedelta(minutes=trial), **Knobs.from_mapping(values).as_dict(), **more}  # fmt: skip


def made(study: Study) -> Forecaster:
    return forecaster(study, lambda: False, print)[0]


def streamed(study: Study) -> dict[str, Any]:
    return {"cache_gb": study.space.entry("cache_gb").low}


def test_what_is_streamed_is_slower_than_what_is_resident(study: Study, probed: list[float | None]) -> None:
    found = made(study)
    resident, slow = found.speed({}, []), found.speed(streamed(study), [])
    assert resident.tok_s == pytest.approx(50) and slow.low < slow.tok_s < resident.tok_s
    assert probed == [None]


def test_runs_correct_the_forecast(study: Study, probed: list[float | None]) -> None:
    found, values = made(study), streamed(study)
    before = found.speed(values, [])
    rows = [row(0, 100.0, {}), *(row(n, 80.0, values) for n in (1, 2, 3)), row(4, 1.0, values, status="crash")]
    after = found.speed(values, rows, START)
    assert len(found.runs(rows)) == 4
    assert abs(after.tok_s - 80) < 0.3 * abs(before.tok_s - 80) and after.high / after.low < before.high / before.low


def test_columns_of_a_row_and_none_for_a_setting_without_replay(study: Study, probed: list[float | None]) -> None:
    found = made(study)
    columns = found.columns(streamed(study), [], START)
    assert tuple(columns) == FORECAST and columns[FORECAST[1]] < columns[FORECAST[0]] < columns[FORECAST[2]]
    assert found.columns({"cache_gb": 1e-9}, [], START) == {} == found.columns({"no_knob": 1}, [], START)


def test_figures_and_replays_are_kept_for_the_next_session(study: Study, probed: list[float | None]) -> None:
    found = made(study)
    speed = found.speed(streamed(study), [])
    found.keep()
    content = json.loads((study.folder / "forecast.json").read_text())
    assert content["figures"]["base_ms"] == 20 and len(content["settings"]) == 1
    again = made(study)
    assert probed == [None] and len(again.arithmetic.known) == 1 and again.speed(streamed(study), []) == speed


def test_without_a_probe_forecasts_begin_after_the_first_run(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise HeadraceError("no layer")

    monkeypatch.setattr(module, "probe", fails)
    found, problem = forecaster(study, lambda: False, print)
    assert problem == "no layer" and found.columns({}, [], START) == {}
    assert found.speed({}, [row(0, 30.0, {})], START).tok_s == pytest.approx(30)
    assert not (study.folder / "forecast.json").exists()


def test_other_engines_have_none(study: Study, probed: list[float | None]) -> None:
    other = dataclasses.replace(study, config={**study.config, "engine": {"module": "mine", "command": None}})
    notes: list[str] = []
    columns = started(other, study.space, [], notes.append, IDLE)
    assert notes == ["no forecast: only this project's engine can be replayed, not mine"]
    assert columns({}, [], START) == {} and not probed
