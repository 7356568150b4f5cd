"""Tests of a rehearsal's forecast: one for each setting, and none with one line why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rehearsals import write

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError
from engine.knobs import Knobs
from engine.plan.footprint import weights_of
from engine.routing.fitted import FITTED
from harness.forecast.study.fit import Figures
from harness.rehearse import forecasts as module
from harness.rehearse.forecasts import forecasts


def test_each_setting_has_a_forecast_or_a_line_says_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Checkpoint.open(write(tmp_path / "r"))
    whole = weights_of(source, Knobs())
    made = [Knobs(cache_gb=share * whole.all_experts_gb, io_mode="direct") for share in (0.75, 0.5)]
    lines: list[str] = []
    monkeypatch.setattr(module, "probe", lambda *_: Figures(10.0, 0.25, 0.0, 0.0, 0.5, 0.001))
    large, small = forecasts(source, made, None, FITTED["kimi_mini"], lines.append)
    assert large is not None and small is not None and not lines
    assert 100 > large.tok_s > small.tok_s > small.low > 0

    def fails(*_: Any) -> Any:
        raise HeadraceError("no layer")

    monkeypatch.setattr(module, "probe", fails)
    assert forecasts(source, made, None, FITTED["kimi_mini"], lines.append) == [None, None]
    assert lines == ["no forecast: no layer"]
