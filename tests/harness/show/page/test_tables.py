"""Tables of the page: their numbers are those of the analysis, and every trial has a standing."""

from __future__ import annotations

from pathlib import Path

from made import rows_of, summary_of

from harness.analysis.pareto import front, reference
from harness.decisions.recommend import named, recommended
from harness.results.rows import frame
from harness.show.page.tables import forecast_cells, front_cells, kinds, recommended_cells, trial_cells

METRICS = ("decode_tok_s", "peak_memory_gb", "perplexity")


def test_the_front_has_the_estimates_of_the_analysis(tmp_path: Path) -> None:
    rows = rows_of()
    best = front(frame(rows))
    table = front_cells(summary_of(tmp_path, rows))
    shown = {row[0].value: row for row in table.rows}
    assert list(shown) == [*best.index, 0]
    for trial, point in best.iterrows():
        assert [cell.value for cell in shown[trial][1:4]] == [point[m] for m in METRICS]
        assert shown[trial][6].text == ("confirmed" if point["confirmed"] else "unconfirmed")
    assert [c.value for c in shown[0][1:4]] == [reference(frame(rows)).iloc[0][m] for m in METRICS]


def test_the_recommended_settings_are_those_of_their_rules(tmp_path: Path) -> None:
    rows = rows_of()
    df = frame(rows)
    expected = named(df, recommended(df))
    table = recommended_cells(summary_of(tmp_path, rows))
    assert [row[0].text for row in table.rows] == [name for name, _, _ in expected]
    for row, (_, point, _) in zip(table.rows, expected, strict=True):
        assert point is not None and [c.value for c in row[1:5]] == [point["trial"], *(point[m] for m in METRICS)]
    default = next(row for row in table.rows if row[0].text == "default")
    assert default[5].value == 1.0


def test_every_trial_has_a_row_and_a_standing(tmp_path: Path) -> None:
    rows = rows_of(24)
    summary = summary_of(tmp_path, rows)
    table = trial_cells(summary)
    assert [int(row[0].text) for row in table.rows] == list(range(29))
    stand = kinds(summary)
    assert {stand[t][0] for t in summary.front.index} <= {"front, confirmed", "front, unconfirmed"}
    assert [stand[t][0] for t in (0, 25, 26, 27, 28)] == [
        "reference", "oom", "crash", "infeasible, not run", "violates a constraint",
    ]  # fmt: skip
    assert stand[25][1] == "out of memory: 3.1 GB" and stand[28][1] == "perplexity <= 5"
    remark = dict(zip(table.headers, table.rows[summary.default or 0], strict=True))["remark"].text
    assert "default" in remark


def test_forecasts_stand_beside_measurements(tmp_path: Path) -> None:
    rows = rows_of(forecast_tok_s=40.0, forecast_tok_s_low=30.0, forecast_tok_s_high=55.0)
    table = forecast_cells(summary_of(tmp_path, rows).df)
    first = {r["trial"]: r["decode_tok_s"] for r in rows if r["status"] == "ok" and r["run"] == 0}
    assert [row[0].value for row in table.rows] == sorted(first)
    for trial, _, forecast, around, measured, error, inside in table.rows:
        speed = first[trial.value]
        assert (forecast.value, around.text, measured.value) == (40.0, "30 to 55", speed)
        assert error.value == 40.0 / speed - 1 and inside.text == ("yes" if 30 <= speed <= 55 else "no")
    assert not forecast_cells(summary_of(tmp_path, rows_of()).df).rows


def test_a_study_without_rows_has_empty_tables(tmp_path: Path) -> None:
    assert not trial_cells(summary_of(tmp_path, [])).rows
