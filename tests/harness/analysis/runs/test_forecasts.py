"""Tests of forecasts against measurements: which runs count, the error and the coverage."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from harness.analysis.runs.forecasts import check_forecasts, forecast_runs


def row(trial: int, forecast: float | None, speed: float | None, **more: Any) -> dict[str, Any]:
    ends = (None, None) if forecast is None else (0.8 * forecast, 1.2 * forecast)
    return {"trial": trial, "run": 0, "status": "ok", "decode_tok_s": speed, "forecast_tok_s": forecast,
            "forecast_tok_s_low": ends[0], "forecast_tok_s_high": ends[1], **more}  # fmt: skip


def test_first_runs_that_were_measured_count() -> None:
    rows = [row(0, 10.0, 10.0), row(1, 10.0, 20.0), row(2, 11.0, 10.0), row(1, 10.0, 10.0, run=1),
            row(3, 10.0, None, status="crash"), row(4, None, 5.0), row(5, 10.0, 3.0, status="stopped")]  # fmt: skip
    df = pd.DataFrame(rows)
    assert [*forecast_runs(df)["trial"]] == [0, 1, 2]
    found = check_forecasts(df)
    assert found is not None and (found.trials, found.inside) == (3, 2)
    assert found.median_error == pytest.approx(0.1)
    assert str(found).endswith("3 settings: median error 10.0%, 2 (67%) inside the 80 % interval")


def test_nothing_without_forecasts() -> None:
    assert check_forecasts(pd.DataFrame([row(0, None, 10.0)])) is None
    assert check_forecasts(pd.DataFrame([{"run": 0, "status": "ok", "decode_tok_s": 1.0}])) is None
    assert check_forecasts(pd.DataFrame()) is None
