"""Figures: valid for plotly, with the points of the analysis, for any objectives and any size of a study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from made import rows_of, summary_of

from harness.show.page.figures import MARKS, figures
from harness.show.page.tables import CONFIRMED, DOMINATED, INFEASIBLE, UNCONFIRMED

FORECAST = {"forecast_tok_s": 40.0, "forecast_tok_s_low": 30.0, "forecast_tok_s_high": 55.0}


def plain(value: Any) -> Any:
    """A figure's data with a colour in place of each CSS variable."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k != "hover"}
    return "#123456" if isinstance(value, str) and re.fullmatch("--[a-z]+", value) else value


def test_plotly_accepts_every_trace(tmp_path: Path) -> None:
    found = figures(summary_of(tmp_path, rows_of(40, **FORECAST)))
    assert {name: len(some) for name, some in found.items()} == {
        "planes": 3, "importance": 1, "slices": 6, "session": 1, "speed": 1, "memory": 1,
    }  # fmt: skip
    for figure in (f for some in found.values() for f in some):
        drawn = go.Figure([plain(trace) for trace in figure["traces"]])
        axes = {k: v for k, v in figure["layout"].items() if "axis" in k or k == "barmode"}
        drawn.update_layout(**{k: plain(v) for k, v in axes.items()})
        assert len(drawn.data) == len(figure["traces"]) and figure["layout"]["height"] > 200


def test_the_planes_hold_the_front_the_dominated_and_the_infeasible(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, rows_of())
    traces = {t.get("name"): t for t in figures(summary)["planes"][0]["traces"]}
    members = [*traces.get(CONFIRMED, {}).get("customdata", []), *traces.get(UNCONFIRMED, {}).get("customdata", [])]
    assert sorted(members) == sorted(summary.front.index)
    assert traces[INFEASIBLE]["customdata"] == [28]
    beaten = summary.standings.index[summary.standings["standing"] == "dominated"]
    assert sorted(traces[DOMINATED]["customdata"]) == sorted(beaten)
    one = summary.front.iloc[0]
    sure = traces[CONFIRMED if one["confirmed"] else UNCONFIRMED]
    at = sure["customdata"].index(int(one["trial"]))
    assert sure["y"][at] == pytest.approx(one["decode_tok_s"], rel=1e-4)
    assert sure["error_y"]["array"][at] == pytest.approx(one["decode_tok_s_high"] - one["decode_tok_s"], rel=1e-4)


def test_speeds_against_their_forecasts(tmp_path: Path) -> None:
    rows = rows_of(**FORECAST)
    (figure,) = figures(summary_of(tmp_path, rows))["speed"]
    equal, trace = figure["traces"]
    first = [r for r in rows if r["status"] == "ok" and r["run"] == 0]
    assert sorted(trace["customdata"]) == sorted(r["trial"] for r in first) and set(trace["x"]) == {40.0}
    assert trace["error_x"]["array"][0] == 15 and trace["error_x"]["arrayminus"][0] == 10 and equal["x"] == equal["y"]
    assert not figures(summary_of(tmp_path, rows_of()))["speed"]


def test_kinds_differ_in_shape() -> None:
    assert len({mark["symbol"] for mark in MARKS.values()}) == len(MARKS)


@pytest.mark.parametrize(
    "objectives", ["ttft_ms,peak_memory_gb", "prefill_tok_s,ttft_ms,bytes_per_token", "peak_memory_gb,perplexity"]
)
def test_other_objectives(objectives: str, tmp_path: Path) -> None:
    more = lambda t: {"ttft_ms": 9.0 + t, "prefill_tok_s": 50.0 - t, "bytes_per_token": 1e6 * (1 + t % 5)}  # noqa: E731
    rows = [{**r, **more(r["trial"]), "objectives": objectives} for r in rows_of()]
    summary = summary_of(tmp_path, rows)
    count = len(objectives.split(","))
    assert len(figures(summary)["planes"]) == count * (count - 1) // 2


@pytest.mark.parametrize("keep", [[], [0], [1], [25], [25, 26, 27], [28], [1, 2]])
def test_small_studies(keep: list[int], tmp_path: Path) -> None:
    found = figures(summary_of(tmp_path, [r for r in rows_of() if r["trial"] in keep]))
    assert not found.get("slices") and not found.get("importance")
