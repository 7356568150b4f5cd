"""Tables: they fit the width, mark default and reference, and name suspect points; a run is one line."""

from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console
from synthetic import FIVE, SPACE, frame, searched, streamed

from harness.analysis.importance import importance
from harness.decisions.recommend import recommended
from harness.show.tables import front_table, importance_rows, importance_table, recommended_table, trial_line, varying


def shown(width: int, **options: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    df = FIVE.assign(cache_gb=[4.0, 1, 2, 2, 3], read_threads=[1, 2, 4, 4, 8], io_mode="direct", hit_rate=0.5)
    df.loc[[2, 3], "origin"] = ["anchor", "reference"]
    console.print(front_table(df, width, **options))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_front_fits_and_names_default_and_reference(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    assert [line.split()[0] for line in lines[2:7]] == ["1", "3", "2", "5", "4"]
    assert "default" in lines[3]
    assert "reference" in lines[6]
    text = "\n".join(lines)
    assert "io_mode" not in text  # it does not vary
    assert ("cache_gb=4 read_threads=1" in text) == (width == 60)


def test_a_live_view_shows_the_best_rows() -> None:
    lines = shown(80, most=2)
    assert lines[-1].strip() == "… and 2 more"
    assert len(lines) == 6


def test_the_line_of_a_failed_trial_has_its_reason() -> None:
    row = {**FIVE.iloc[0].to_dict(), "status": "oom", "status_reason": "9 GB are above the limit of 8 GB"}
    assert "oom        9 GB are above the limit of 8 GB" in trial_line(row, 1, 24, ["cache_gb"])


def test_the_line_of_a_good_run_has_each_objective_with_its_unit() -> None:
    row = {**FIVE.iloc[0].to_dict(), "cache_gb": 4.0, "violated": "peak_memory_gb <= 8"}
    line = trial_line(row, 3, 24, ["cache_gb"])
    assert line == " 3/24 trial 1   ok            100 tok/s      10 GB       8 ppl  cache_gb=4  (peak_memory_gb <= 8)"
    ended = {**row, "perplexity": None, "scoring_stopped": "violates x", "scored_tokens": 300, "quality_from_trial": None}
    assert trial_line(ended, 3, 24, ["cache_gb"]).endswith("(scoring ended after 300 tokens: violates x)")
    assert "scoring" not in trial_line({**ended, "quality_from_trial": 2}, 3, 24, ["cache_gb"])
    reference = trial_line({**row, "origin": "reference", "violated": None}, 0, 24, ["cache_gb"])
    assert reference.endswith("8 ppl  reference: everything resident")


def test_a_point_with_suspect_runs_only_shows_their_number() -> None:
    rows = pd.concat([FIVE.assign(run=i, suspect="load: others", row_id=str(i)) for i in range(3)])
    console = Console(width=80, file=io.StringIO())
    console.print(front_table(rows, 80))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.count("3 suspect") == 4 and "0 ?" not in text


def test_recommended_settings_stand_before_default_and_reference() -> None:
    df = FIVE.assign(cache_gb=[4.0, 1, 2, 2, 3], row_id=[str(i) for i in range(5)])
    df.loc[1, "origin"] = "anchor"
    console = Console(width=120, file=io.StringIO())
    console.print(recommended_table(df, recommended(df)))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert "x default" in lines[0]
    names = [line.split()[0] for line in lines[2:] if line.strip()]
    assert names[-2:] == ["default", "reference"] and "fastest" in names
    assert "not measured" in lines[-1]


def test_importance_has_a_row_per_knob_or_says_why_not() -> None:
    text, rows = importance_rows(importance(frame(searched(0, streamed, 40))))
    assert "standard error, over 40 points" in text
    assert {row[0] for row in rows} <= {f"`{e.name}`" for e in SPACE.entries} and len(rows[0]) == 4
    assert importance_rows(importance(frame([])))[0].startswith("Importance needs at least ")
    console = Console(width=120, file=io.StringIO())
    console.print(importance_table(importance(frame(searched(0, streamed, 40)))))
    assert "cache_gb" in console.file.getvalue()  # type: ignore[attr-defined]


def test_varying_knobs() -> None:
    assert varying(FIVE.assign(cache_gb=[4.0, 1, 2, 2, 3], io_mode="direct")) == ["cache_gb"]
