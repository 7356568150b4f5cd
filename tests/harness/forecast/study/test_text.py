"""Tests of what a study prints before its first run."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from harness.forecast.study import candidates, forecaster, text
from harness.forecast.study.text import started
from harness.study.study import Study

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDLE = SimpleNamespace(interrupted=lambda: False, prepare=lambda: None)


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "MOST", 5)


def notes(study: Study) -> tuple[list[str], Any]:
    found: list[str] = []
    return found, started(study, study.space, [], found.append, IDLE)


def test_the_forecast_names_the_settings_that_win(study: Study, probed: list[float | None]) -> None:
    lines, columns = notes(study)
    assert lines[0].startswith("forecast before any run, with 80 % intervals: ") and "routing: made up with" in lines[0]
    assert lines[1].startswith("forecast, reference: 50 tok/s (") and lines[1].endswith(" GB: everything resident")
    assert any(line.startswith("forecast, fastest without loss: ") and "cache_gb=" in line for line in lines[2:])
    assert columns({}, [], NOW)["forecast_tok_s"] == pytest.approx(50)
    assert (study.folder / "forecast.json").exists()


def test_other_engines_have_one_line(study: Study) -> None:
    other = dataclasses.replace(study, config={**study.config, "engine": {"module": "mine", "command": None}})
    lines, columns = notes(other)
    assert len(lines) == 1 and lines[0].startswith("no forecast: only this project's engine") and columns({}, [], NOW) == {}


@pytest.mark.parametrize("where", [(forecaster, "routing"), (text, "start_lines"), (forecaster, "probe")])
def test_a_failure_is_one_line(
    study: Study, probed: list[float | None], where: Any, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    def fails(*_: Any) -> Any:
        raise forecaster.HeadraceError("this\nfails")

    monkeypatch.setattr(*where, fails)
    lines, _ = notes(study)
    assert len(lines) == 1 and lines[0].startswith("no forecast") and lines[0].splitlines() == lines
