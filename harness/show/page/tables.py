"""Tables of the page: recommended settings, front, and all trials, as cells of text with the value behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from engine import Knobs
from engine.effective import effective
from harness.analysis.runs.forecasts import FORECAST, forecast_runs
from harness.decisions.recommend import ratio
from harness.results.columns import NOT_RUN
from harness.results.metrics import METRICS, SHORT
from harness.show.lines import confirmation
from harness.show.tables import varying
from harness.show.text import number, with_interval

from .summary import Summary

CONFIRMED, UNCONFIRMED, UNDECIDED, DOMINATED = "front, confirmed", "front, unconfirmed", "undecided", "dominated"
FORECASTS = 200  # trials in the table of forecasts
REMARK = 100  # characters of a reason in the table of all trials
INFEASIBLE, REFERENCE, UNKNOWN, SUSPECT = "violates a constraint", "reference", "figures missing", "suspect"


class Cell(NamedTuple):
    """Text, and the unrounded value that tests and sorting use; None if there is none."""

    text: str
    value: float | str | None = None


@dataclass(frozen=True)
class Table:
    """Headers and rows; the first `labels` columns hold words, the others figures."""

    headers: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    words: frozenset[str] = frozenset()  # headers whose cells are left-aligned


def figure(point: Mapping[str, Any], metric: str) -> Cell:
    """An estimate with its interval, and its unrounded value."""
    value = point[metric]
    return Cell(with_interval(point, metric), None if value is None or value != value else float(value))


def recommended_cells(summary: Summary) -> Table:
    """Recommended settings, default and reference: figures, speed as a multiple of the default's, and confirmation."""
    headers = ["setting", "trial", *(SHORT[n] for n in summary.objectives), "x default", "runs", "state"]
    base = next((point for name, point, _ in summary.named if name == "default"), None)
    rows = []
    for name, point, choice in summary.named:
        if point is None:
            why = "not measured" if choice is None else f"not met: {choice.reason}"
            rows.append([Cell(name), *[Cell("-")] * (len(headers) - 2), Cell(why)])
            continue
        times = Cell("-")
        if base is not None:
            middle = ratio(summary.found, point, base)[0]
            times = Cell(number(middle, 3), middle)
        state = "" if choice is None else confirmation(choice, int(point["fresh_runs"]), summary.found.runs)
        figures = [figure(point, n) for n in summary.objectives]
        trial, runs = int(point["trial"]), int(point["runs"])
        rows.append([Cell(name), Cell(str(trial), trial), *figures, times, Cell(str(runs), runs), Cell(state)])
    return Table(headers, rows, frozenset({"setting", "state"}))


def front_cells(summary: Summary) -> Table:
    """The front, best in the first objective first, then the reference: figures and the knobs that vary among these."""
    lines = pd.concat([summary.front, summary.reference]) if len(summary.reference) else summary.front
    names = varying(summary.front)
    metrics = [*summary.objectives, "hit_rate"]
    rows = []
    for trial, point in lines.iterrows():
        resident = point["origin"] == "reference"
        tags = "reference" if resident else ", ".join(_tags(summary, int(point["trial"])))
        state = "" if resident else "confirmed" if point["confirmed"] else "unconfirmed"
        figures = [figure(point, n) if n != "hit_rate" else Cell(number(point[n], 2), _known(point[n])) for n in metrics]
        knobs = live(point)
        cells = [Cell(knob(knobs, n)) for n in names]
        rows.append(
            [Cell(str(point["trial"]), int(trial)), *figures, Cell(str(point["runs"])), Cell(state), Cell(tags), *cells]
        )
    headers = ["trial", *(SHORT[n] for n in metrics), "runs", "state", "also", *names]
    return Table(headers, rows, frozenset({"state", "also"}))


def trial_cells(summary: Summary) -> Table:
    """Every trial by number: its standing or why it has none, its figures, and the knobs that vary."""
    first = summary.df.sort_values(["trial", "run"], kind="stable").drop_duplicates("trial")
    every = summary.found.estimates if len(summary.df) else summary.df
    names, metrics = varying(first), [*summary.objectives, "hit_rate"]
    stand = kinds(summary)
    took = summary.df.groupby("trial")["wall_s"].sum()
    shown = ["runs", *(f"{n}{end}" for n in metrics for end in (("", "_low", "_high") if n in METRICS else ("",)))]
    points = dict(zip(every.index, every[shown].to_dict("records"), strict=True)) if len(every) else {}
    rows = []
    for row in first[["trial", "status", "origin", *Knobs.names()]].to_dict("records"):
        trial = int(row["trial"])
        point = points.get(trial)
        state, why = stand[trial]
        figures = [Cell("")] * len(metrics)
        if point:
            figures = [Cell(with_interval(point, n) if n in METRICS else number(point[n], 2)) for n in metrics]
        ran = row["status"] not in NOT_RUN
        cells = [Cell(str(trial)), Cell(state), *figures, Cell(str(point["runs"]) if point else "0" if not ran else "")]
        knobs = live(row)
        cells += [
            Cell(f"{took[trial]:.0f}" if ran else ""),
            Cell(row["origin"] or ""),
            *(Cell(knob(knobs, n)) for n in names),
        ]
        rows.append([*cells, Cell("; ".join([*_tags(summary, trial), *([why[:REMARK]] if why else [])]))])
    headers = ["trial", "standing", *(SHORT[n] for n in metrics), "runs", "s", "origin", *names, "remark"]
    return Table(headers, rows, frozenset({"standing", "origin", "remark"}))


def forecast_cells(df: pd.DataFrame) -> Table:
    """The forecast speed with its 80 % interval, the measured one and the error, of the newest `FORECASTS` trials."""
    rows = []
    for row in forecast_runs(df).sort_values("trial").tail(FORECASTS).to_dict("records"):
        middle, low, high, speed = (float(row[name]) for name in (*FORECAST, "decode_tok_s"))
        cells = [
            Cell(str(row["trial"]), int(row["trial"])), Cell(row["origin"] or ""), Cell(number(middle), middle),
            Cell(f"{number(low)} to {number(high)}"), Cell(number(speed), speed),
            Cell(f"{middle / speed - 1:+.0%}", middle / speed - 1), Cell("yes" if low <= speed <= high else "no"),
        ]  # fmt: skip
        rows.append(cells)
    headers = ["trial", "origin", "forecast tok/s", "80 % interval", "measured tok/s", "error", "inside"]
    return Table(headers, rows, frozenset({"origin"}))


def kinds(summary: Summary) -> dict[int, tuple[str, str]]:
    """Each trial's standing, or the status of its run without one, and the reason where there is one."""
    df, found = summary.df, dict[int, tuple[str, str]]()
    first = df.sort_values(["trial", "run"], kind="stable").drop_duplicates("trial")
    for row in first[["trial", "status", "status_reason", "origin", "suspect", "violated"]].to_dict("records"):
        reason = row["status_reason"] if isinstance(row["status_reason"], str) else ""
        state = f"{row['status']}, not run" if row["status"] in NOT_RUN else str(row["status"])
        found[int(row["trial"])] = (state, reason.strip().splitlines()[-1] if reason.strip() else "")
    if not len(df):
        return found
    every = summary.found.estimates
    violated = df.dropna(subset="violated").drop_duplicates("trial").set_index("trial")["violated"]
    for trial, origin, feasible, suspect in zip(
        every.index, every["origin"], every["feasible"], every["suspect"], strict=True
    ):
        state = SUSPECT if suspect else UNKNOWN
        state, why = (INFEASIBLE, str(violated.get(trial, ""))) if not feasible else (state, "")
        found[int(trial)] = (REFERENCE, "") if origin == "reference" else (state, why)
    table = summary.standings
    for trial, standing, sure in zip(table.index, table["standing"], table["confirmed"], strict=True):
        state = (CONFIRMED if sure else UNCONFIRMED) if standing == "front" else standing
        found[int(trial)] = (state, "")
    return found


def live(row: Mapping[str, Any]) -> dict[str, Any]:
    """The knobs that have an effect in a row; unset ones are None."""
    return effective({n: None if row[n] is None or row[n] != row[n] else row[n] for n in Knobs.names()})


def knob(knobs: Mapping[str, Any], name: str) -> str:
    """A knob's value, `unset`, or a dash where it has no effect."""
    if name not in knobs:
        return "-"
    return "unset" if knobs[name] is None else number(knobs[name], 4)


def _tags(summary: Summary, trial: int) -> list[str]:
    return [*summary.used.get(trial, []), *(["default"] if trial == summary.default else [])]


def _known(value: Any) -> float | None:
    return None if value is None or value != value else float(value)
