"""Figures of the page for plotly: the front in its planes, importance, slices, session, and speed and memory against their
forecasts.

A figure is plain data: a colour is the name of a CSS variable, so that the page can draw it light and dark, and the knobs of
a point are no part of it, because the page takes them from the table of all trials.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from engine import Knobs
from harness.analysis.estimates import suspect_runs
from harness.analysis.runs.forecasts import FORECAST, forecast_runs
from harness.analysis.runs.timeline import since_first
from harness.results.columns import NOT_RUN, STATUSES
from harness.results.metrics import SPEEDS
from harness.show.plots.front_plot import CUT_ABOVE, LOG_ABOVE, LOG_SPEED_ABOVE, staircase
from harness.show.text import axis, number

from .facts import forecast_pairs
from .summary import Summary
from .tables import CONFIRMED, DOMINATED, INFEASIBLE, REFERENCE, UNCONFIRMED, UNDECIDED, live

Figure = dict[str, Any]  # title, traces and layout, as plotly.js takes them
FEW_VALUES = 12  # a knob with at most so many values has an axis of categories
DIGITS = 5  # significant digits of a coordinate
MARKS: dict[str, Any] = {  # in the order of drawing; shapes differ, so that colour alone tells nothing
    DOMINATED: {"symbol": "x-thin", "size": 6, "line": {"width": 1.2, "color": "--faint"}, "color": "--faint"},
    INFEASIBLE: {"symbol": "triangle-down-open", "size": 9, "line": {"width": 1.6}, "color": "--red"},
    UNDECIDED: {"symbol": "triangle-up-open", "size": 10, "line": {"width": 1.8}, "color": "--orange"},
    REFERENCE: {"symbol": "diamond-open", "size": 12, "line": {"width": 2}, "color": "--red"},
    UNCONFIRMED: {"symbol": "circle-open", "size": 11, "line": {"width": 2.2}, "color": "--blue"},
    CONFIRMED: {"symbol": "circle", "size": 12, "line": {"width": 1, "color": "--ink"}, "color": "--blue"},
}


def figures(summary: Summary) -> dict[str, list[Figure]]:
    """The figures by section: planes, importance, slices, session, speed and memory; a section without data has none."""
    if not len(summary.df):
        return {}
    points = _points(summary)
    return {
        "planes": _planes(summary, points),
        "importance": _importance(summary),
        "slices": _slices(summary, points),
        "session": _session(summary.df),
        "speed": _speed(summary.df),
        "memory": _memory(summary),
    }


def _points(summary: Summary) -> dict[str, pd.DataFrame]:
    """The points of each kind of mark, with figures for all objectives."""
    table, every = summary.standings, summary.found.estimates
    whole = every[list(summary.objectives)].notna().all(axis=1)
    sure = table["confirmed"].to_numpy(bool)
    return {
        DOMINATED: table[table["standing"] == "dominated"],
        INFEASIBLE: every[whole & ~every["feasible"] & (every["origin"] != "reference")],
        UNDECIDED: table[table["standing"] == "undecided"],
        REFERENCE: summary.reference,
        UNCONFIRMED: table[(table["standing"] == "front") & ~sure],
        CONFIRMED: table[(table["standing"] == "front") & sure],
    }


def _planes(summary: Summary, points: dict[str, pd.DataFrame]) -> list[Figure]:
    """Every pair of objectives, those with the first speed, which is vertical, before the others."""
    names = list(summary.objectives)
    if not any(len(some) for some in points.values()):
        return []
    first = next((n for n in names if n in SPEEDS), names[0])
    pairs = [(x, first) for x in names if x != first]
    pairs += itertools.combinations([n for n in names if n != first], 2)
    return [_plane(summary, points, x, y) for x, y in pairs]


def _plane(summary: Summary, points: dict[str, pd.DataFrame], x: str, y: str) -> Figure:
    traces = [_line(staircase(summary.front, x, y))] if len(summary.front) else []
    for kind, mark in MARKS.items():
        some = points[kind]
        if not len(some):
            continue
        trace = {**_scatter(some, x, y, kind), "marker": mark, "hover": "trial"}
        if kind not in (DOMINATED, INFEASIBLE) and y in SPEEDS:
            trace["error_y"] = _bars(some, y)
        if kind not in (DOMINATED, INFEASIBLE) and x in SPEEDS:
            trace["error_x"] = _bars(some, x)
        traces.append(trace)
    if summary.default in (table := summary.standings).index:
        square = {"symbol": "square-open", "size": 20, "color": "--ink", "line": {"width": 1.5}}
        traces.append({**_scatter(table.loc[[summary.default]], x, y, "default"), "marker": square, "hoverinfo": "skip"})
    if summary.used:
        star = {"symbol": "star-open", "size": 22, "color": "--green", "line": {"width": 1.6}}
        traces.append({**_scatter(table.loc[list(summary.used)], x, y, "recommended"), "marker": star, "hoverinfo": "skip"})
    wanted = [points[k] for k in MARKS if k not in (DOMINATED, INFEASIBLE) and len(points[k])]
    across, beyond = _axis(x, list(points.values()), wanted)
    up, above = _axis(y, list(points.values()), wanted)
    notes = [f"{n} trials lie beyond the {side} edge; a double click shows them" for n, side in
             ((beyond, "right"), (above, "upper")) if n]  # fmt: skip
    layout = {"xaxis": across, "yaxis": up, "legend": True, "height": 460}
    return {"title": f"{y} against {x}", "note": ". ".join(notes), "traces": traces, "layout": layout}


def _axis(name: str, every: Sequence[pd.DataFrame], wanted: Sequence[pd.DataFrame]) -> tuple[Figure, int]:
    """An axis that shows all points, but those much worse than `wanted`; and the number of points beyond its end."""
    values = np.concatenate([some[name].to_numpy(float) for some in every])
    near = np.concatenate([some[name].to_numpy(float) for some in wanted]) if wanted else values
    edge = CUT_ABOVE * near.max() if name not in SPEEDS else np.inf
    shown = values[values <= edge] if (values <= edge).any() else values
    low, high = float(shown.min()), float(shown.max())
    if low > 0 and high / low > (LOG_SPEED_ABOVE if name in SPEEDS else LOG_ABOVE):
        pad = 0.06 * math.log10(high / low)
        ends = [math.log10(low) - pad, math.log10(high) + pad]
        return {"title": axis(name), "type": "log", "range": ends, **_ticks(low, high)}, int((values > edge).sum())
    if name in SPEEDS:
        return {"title": axis(name), "rangemode": "tozero"}, 0
    pad = 0.08 * (high - low) or 0.05 * abs(low) or 1.0
    return {"title": axis(name), "range": [_short(low - pad), _short(high + pad)]}, int((values > edge).sum())


def _scatter(some: pd.DataFrame, x: str, y: str, name: str) -> Figure:
    trials = [int(t) for t in some["trial"]]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": _list(some[x]),
        "y": _list(some[y]),
        "customdata": trials,
    }


def _line(corners: np.ndarray) -> Figure:
    return {"type": "scatter", "mode": "lines", "x": _list(corners[:, 0]), "y": _list(corners[:, 1]), "showlegend": False,
            "line": {"color": "--ink", "width": 1}, "opacity": 0.4, "hoverinfo": "skip"}  # fmt: skip


def _bars(some: pd.DataFrame, name: str) -> Figure:
    """The 95 % intervals as error bars."""
    above, below = some[f"{name}_high"] - some[name], some[name] - some[f"{name}_low"]
    return {"type": "data", "symmetric": False, "array": _list(above), "arrayminus": _list(below), "color": "--faint",
            "thickness": 1, "width": 3}  # fmt: skip


def _importance(summary: Summary) -> list[Figure]:
    """The share of each knob, a colour and a pattern for each objective, with the share of a shuffled knob as a line."""
    found = summary.importance
    if not found.objectives:
        return []
    order = found.order[::-1]  # plotly draws the first at the bottom
    traces: list[Figure] = []
    for objective, color, pattern in zip(found.objectives, ("--blue", "--orange", "--green"), ("", "/", "."), strict=False):
        share = [found.share[n][objective] for n in order]
        traces.append({
            "type": "bar", "orientation": "h", "name": objective, "y": order, "x": _list(share),
            "marker": {"color": color, "pattern": {"shape": pattern}},
            "error_x": {"type": "data", "array": _list([found.error[n][objective] for n in order]), "color": "--ink",
                        "thickness": 1, "width": 3},
            "hovertemplate": "%{y}: %{x:.1%} of %{fullData.name}<extra></extra>",
        })  # fmt: skip
    most = max(found.share[n][o] + found.error[n][o] for n in order for o in found.objectives)
    across = {"title": "share of the variance", "tickformat": ".0%", "range": [0, _short(1.03 * most) or 1]}
    layout = {
        "xaxis": across,
        "yaxis": {"type": "category", "dtick": 1},
        "legend": True,
        "height": 90 + 42 * len(order),
        "barmode": "group",
    }
    return [{"title": "share of the variance that a knob alone explains", "note": "", "traces": traces, "layout": layout}]


def important(summary: Summary) -> list[str]:
    """The two most important knobs; none without enough points."""
    return summary.importance.order[:2] if summary.importance.objectives else []


def _slices(summary: Summary, points: dict[str, pd.DataFrame]) -> list[Figure]:
    """Each objective over each of the two most important knobs, for the trials in which the knob had an effect."""
    names = important(summary)
    if not names:
        return []
    knobs = {int(t): live(row) for kind in MARKS if kind != REFERENCE for t, row in
             zip(points[kind]["trial"], points[kind][list(Knobs.names())].to_dict("records"), strict=True)}  # fmt: skip
    found = []
    for name, y in itertools.product(names, summary.objectives):
        values = [knobs[t][name] for t in knobs if name in knobs[t]]
        across = _knob_axis(name, values)
        traces = []
        for kind, mark in MARKS.items():
            some = points[kind]
            if kind == REFERENCE or not len(some):
                continue
            some = some[[name in knobs[int(t)] for t in some["trial"]]]
            place = [_place(knobs[int(t)][name], across) for t in some["trial"]]
            traces.append({**_scatter(some, y, y, kind), "x": place, "marker": mark, "hover": "trial"})
        up, _ = _axis(y, [p for k, p in points.items() if k != REFERENCE], [])
        layout = {"xaxis": across, "yaxis": up, "legend": False, "height": 320}
        found.append({"title": f"{y} over {name}", "note": "", "traces": [t for t in traces if t["x"]], "layout": layout})
    return found


def _knob_axis(name: str, values: Sequence[Any]) -> Figure:
    """Categories in order, unset last, for words and few values; else a scale, logarithmic over a wide range."""
    known = sorted({v for v in values if v is not None}, key=lambda v: (isinstance(v, str), v))
    if len(known) <= FEW_VALUES or isinstance(known[-1], str):
        order = [number(v, 4) for v in known] + (["unset"] if None in values else [])
        return {"title": name, "type": "category", "categoryorder": "array", "categoryarray": order}
    wide = known[0] > 0 and known[-1] / known[0] > LOG_ABOVE
    return {"title": name, "type": "log", **_ticks(known[0], known[-1])} if wide else {"title": name, "type": "linear"}


def _ticks(low: float, high: float) -> Figure:
    """The ticks of a logarithmic axis as plain figures: 1, 2 and 5 of each decade, or 1 alone over many decades."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    values = [float(f"{step}e{power}") for power in range(first, last + 1) for step in steps]
    return {"tickvals": values, "ticktext": [f"{v:g}" for v in values]}


def _place(value: Any, across: Figure) -> Any:
    if across["type"] == "category":
        return "unset" if value is None else number(value, 4)
    return None if value is None else _short(value)


def _session(df: pd.DataFrame) -> list[Figure]:
    """Above, the speed of each run with the sentinel's line and suspect runs; below, a tick for each run by its status."""
    rows, seconds = since_first(df)
    if rows.empty:
        return []
    unit, unit_s = ("hours", 3600) if seconds.max() > 3600 else ("minutes", 60)
    time, suspect = seconds / unit_s, suspect_runs(rows)
    timed = rows["decode_tok_s"].notna()
    sentinel = (rows["origin"] == "sentinel") & timed
    if sentinel.any():  # the first run of its trial is its baseline
        sentinel |= rows["trial"].isin(rows.loc[sentinel, "trial"]) & timed & (rows["status"] == "ok")
    groups = (
        ("runs", timed & ~sentinel & ~suspect, "markers", {"symbol": "circle", "size": 6, "color": "--faint"}),
        ("sentinel (the default, repeated)", sentinel, "lines+markers", {"symbol": "square", "size": 8, "color": "--blue"}),
        ("suspect runs", timed & suspect, "markers", {"symbol": "x", "size": 9, "color": "--red"}),
    )
    traces = [
        {**_runs(rows[some], time[some], rows.loc[some, "decode_tok_s"], name), "mode": mode, "marker": mark,
         "line": {"color": "--blue", "width": 1.2}}
        for name, some, mode, mark in groups if some.any()
    ]  # fmt: skip
    states = [s for s in STATUSES if (rows["status"] == s).any()][::-1]
    for state in states:
        some = rows["status"] == state
        color = "--ink" if state == "ok" else "--faint" if state in (*NOT_RUN, "stopped") else "--red"
        mark = {"symbol": "line-ns", "size": 9, "color": color, "line": {"width": 1.5, "color": color}}
        trace = _runs(rows[some], time[some], None, state)
        traces.append({**trace, "y": [f"{state} ({some.sum()})"] * int(some.sum()), "yaxis": "y2", "marker": mark,
                       "showlegend": False})  # fmt: skip
    low = min(0.45, 0.08 * len(states) + 0.04)
    layout = {
        "xaxis": {"title": f"{unit} since the first run", "anchor": "y2"},
        "yaxis": {"title": "decode_tok_s", "rangemode": "tozero", "domain": [low + 0.08, 1]},
        "yaxis2": {"domain": [0, low], "type": "category", "automargin": True},
        "legend": True, "height": 380 + 24 * len(states),
    }  # fmt: skip
    return [{"title": "speed and status of each run", "note": "", "traces": traces, "layout": layout}]


def _runs(rows: pd.DataFrame, time: pd.Series, values: pd.Series | None, name: str) -> Figure:
    trials = [int(t) for t in rows["trial"]]
    return {"type": "scatter", "mode": "markers", "name": name, "x": _list(time), "customdata": trials, "hover": "trial",
            **({} if values is None else {"y": _list(values)})}  # fmt: skip


def _speed(df: pd.DataFrame) -> list[Figure]:
    """Measured over forecast speed, with the forecasts' 80 % intervals."""
    rows = forecast_runs(df)
    if len(rows) < 2:
        return []
    middle, low, high = FORECAST
    bars = {"type": "data", "symmetric": False, "array": _list(rows[high] - rows[middle]),
            "arrayminus": _list(rows[middle] - rows[low]), "color": "--faint", "thickness": 1, "width": 3}  # fmt: skip
    return [_against_forecast("speed", rows, middle, "decode_tok_s", {"error_x": bars})]


def _memory(summary: Summary) -> list[Figure]:
    """Measured over predicted memory, with the line on which they are equal."""
    pairs = forecast_pairs(summary)
    if len(pairs) < 2:
        return []
    return [_against_forecast("memory", pairs, "predicted_peak_gb", "peak_memory_gb", {})]


def _against_forecast(what: str, rows: pd.DataFrame, x: str, y: str, more: Figure) -> Figure:
    """Measurements over forecasts, with the line on which they are equal."""
    trace = {**_scatter(rows, x, y, "trials"), "hover": "trial", **more,
             "marker": {"symbol": "circle-open", "size": 8, "color": "--blue"}}  # fmt: skip
    both = rows[[x, y]].to_numpy(float)
    ends = [_short(both.min()), _short(both.max())]
    equal = {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "name": "equal", "hoverinfo": "skip",
             "line": {"color": "--faint", "dash": "dash", "width": 1.2}}  # fmt: skip
    layout = {"xaxis": {"title": x}, "yaxis": {"title": f"{y}, measured"}, "legend": True, "height": 380}
    return {"title": f"{what}, measured against forecast", "note": "", "traces": [equal, trace], "layout": layout}


def _list(values: Any) -> list[Any]:
    return [None if v != v else _short(v) for v in np.asarray(values, float)]


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
