"""Merging: each row once, only comparable rows, nothing overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stored import ONE, TWO, fill, row

from harness.merge import main as merge
from harness.report import main as report
from harness.results.rows import read_rows, read_tokens, read_trials
from harness.results.writing import compact, write_row


def test_machines_of_one_kind_are_merged_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = fill(tmp_path / "a", range(3), ONE), fill(tmp_path / "b", range(3, 5), TWO)
    compact(Path(b))
    out = str(tmp_path / "out")
    assert merge([out, a, b, a]) == 0
    printed = capsys.readouterr().out
    assert "3 rows  machine one (M2 Max, 12 cores)" in printed and "2 rows  machine two" in printed
    assert read_rows(Path(out)) == read_rows(Path(a)) + read_rows(Path(b))
    assert read_tokens(out)["wall_ms"].tolist() == [1.0, 2.0, 2.0, 2.0, 3.0, 2.0, 4.0, 2.0, 5.0, 2.0]
    assert report([out]) == 0
    capsys.readouterr()
    before = read_rows(Path(out))
    assert merge([out, a]) == 2
    assert "out exists already and is not overwritten" in capsys.readouterr().err
    assert read_rows(Path(out)) == before
    single = str(tmp_path / "all.parquet")
    assert merge([single, f"{out}/trials.parquet", a]) == 0
    assert len(read_trials(single)) == 5


def test_a_trial_number_keeps_one_setting(tmp_path: Path) -> None:
    a = fill(tmp_path / "a", range(3), ONE)
    b = fill(tmp_path / "b", range(2), TWO)  # as in a
    fill(tmp_path / "b", range(2, 3), TWO, evict_half_life=64.0)
    fill(tmp_path / "b", range(3, 4), TWO, quality_from_trial=2)
    out = tmp_path / "out"
    assert merge([str(out), a, b]) == 0
    trials = {r["row_id"]: r["trial"] for r in read_rows(out)}
    assert trials == {"one-0": 0, "one-1": 1, "one-2": 2, "two-0": 0, "two-1": 1, "two-2": 4, "two-3": 3}
    assert [r["quality_from_trial"] for r in read_rows(out) if r["row_id"] == "two-3"] == [4]
    assert read_tokens(out).groupby("row_id")["trial"].first().to_dict() == trials
    write_row(tmp_path / "b", row(2, run=1, row_id="two-2-1", evict_half_life=64.0, **TWO))
    assert merge([str(tmp_path / "again"), str(out), b]) == 0  # b has a new run: its trial 2 is already 4
    assert {r["row_id"]: r["trial"] for r in read_rows(tmp_path / "again")} == {**trials, "two-2-1": 4}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"eval_fingerprint": "b" * 16}, "rows of 2 sets of evaluation texts"),
        ({"model_fingerprint": "other"}, "rows of 2 models"),
        ({"objectives": "decode_tok_s,kl"}, "rows of 2 sets of objectives"),
        ({"state": "cold"}, "rows of 2 states of the experts' cache (cold; prefilled)"),
        ({"cores": 8}, "rows of 2 kinds of machine (M2 Max, 12 cores; M2 Max, 8 cores)"),
    ],
)
def test_rows_that_are_not_comparable_are_refused(
    tmp_path: Path, other: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    a = fill(tmp_path / "a", range(1), ONE, model_fingerprint="f")
    b = fill(tmp_path / "b", range(1, 2), TWO, **{"model_fingerprint": "f", **other})
    assert merge([str(tmp_path / "out"), a, b]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert merge([str(tmp_path / "out"), a, b, "--mixed-machines"]) == (0 if "cores" in other else 2)


def test_a_place_without_rows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert merge([str(tmp_path / "out"), str(tmp_path / "nowhere")]) == 2
    assert "nowhere has no trials" in capsys.readouterr().err
