"""Rows of older schema versions are read, and never mixed with what they cannot be compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import row

from engine.system.shipped import ROOT
from harness import ResultsError
from harness.best.commands import cannot_run, commands_of
from harness.decisions.reuse import quality_source
from harness.results.columns import NAMES, SCHEMA_VERSION
from harness.results.merge import merge, write_merged
from harness.results.older import RENAMED
from harness.results.parquet import part_path
from harness.results.rows import read_rows, read_table, read_trials
from harness.results.writing import compact, write_row, write_tokens

VERSION_1 = Path(__file__).parents[1] / "data"  # a study of schema version 1


def test_rows_of_version_1_are_read(tmp_path: Path) -> None:
    old = pq.read_table(VERSION_1 / "trials" / "part-all.parquet")
    df = read_trials(VERSION_1)
    assert tuple(df.columns) == NAMES and df["trial"].tolist() == sorted(old["trial"].to_pylist())
    assert set(df["run"]) == {0} and set(df["round"]) == {1} and set(df["schema_version"]) == {1}
    assert df["row_id"].nunique() == len(df) and df["row_id"].str.startswith("v1-").all() and df["objectives"].isna().all()
    assert read_trials(VERSION_1)["row_id"].tolist() == df["row_id"].tolist()
    (tmp_path / "trials").mkdir()
    for i in range(3):  # one part for each trial
        pq.write_table(old.slice(i, 1), tmp_path / "trials" / f"part-{old['trial'][i].as_py():06d}.parquet")
    before = read_rows(tmp_path)
    with pytest.raises(ResultsError, match="already has a row"):
        write_row(tmp_path, row(before[0]["trial"]))
    write_row(tmp_path, row(99))
    compact(tmp_path)
    assert read_rows(tmp_path)[:3] == before and len(read_rows(tmp_path)) == 4


HICCUP = [10.0] * 100 + [1000.0] + [10.0] * 99


def version_2(folder: Path, trials: int = 3) -> None:
    """A study of version 2: trial 0 has the median of blocks in decode_tok_s, trial 1 comes from an engine without token
    times, and trial 2 did not run."""
    for trial in range(trials):
        median = {"decode_tok_s": 100.0, "decode_tok_s_low": 99.0, "decode_tok_s_high": 101.0}
        none = {"decode_tok_s": None if trial == 2 else 50.0}
        write_row(folder, row(trial, schema_version=2, steady_tok_s=None, **(median if not trial else none)))
    write_tokens(folder, "id-0-0", 0, 0, HICCUP)
    for path in (folder / "trials").iterdir():
        table = pq.read_table(path).drop_columns(["steady_tok_s"])
        pq.write_table(table.replace_schema_metadata({"schema_version": "2"}), path)


def test_rows_of_version_2_get_tokens_over_time(tmp_path: Path) -> None:
    version_2(tmp_path)
    first, own, none = read_rows(tmp_path)
    assert first["steady_tok_s"] == 100 and first["decode_tok_s"] == pytest.approx(1000 * 200 / sum(HICCUP))
    assert first["decode_tok_s_low"] < first["decode_tok_s"] < first["decode_tok_s_high"]
    assert first["schema_version"] == 2
    assert (own["decode_tok_s"], own["steady_tok_s"], none["decode_tok_s"]) == (50.0, None, None)
    compact(tmp_path)
    assert not list((tmp_path / "trials").iterdir()) and read_rows(tmp_path) == [first, own, none]
    assert read_trials(tmp_path / "trials.parquet")["steady_tok_s"].tolist()[0] == 100


def test_rows_of_version_2_without_their_tokens_keep_the_median_and_are_not_mixed(tmp_path: Path) -> None:
    version_2(tmp_path / "old")
    for path in (tmp_path / "old" / "tokens").iterdir():
        path.unlink()
    first = read_rows(tmp_path / "old")[0]
    names = ("decode_tok_s", "decode_tok_s_low", "decode_tok_s_high", "steady_tok_s")
    assert [first[name] for name in names] == [100, 99, 101, 100]
    compact(tmp_path / "old")
    assert read_rows(tmp_path / "old")[0] == first
    write_row(tmp_path / "new", row(5, steady_tok_s=15.0))
    assert merge([tmp_path / "old"]).num_rows == 3
    with pytest.raises(ResultsError, match=r"have a median of blocks in decode_tok_s, .*; merge only one kind"):
        merge([tmp_path / "old", tmp_path / "new"])


def test_rows_of_version_2_with_their_tokens_are_merged_by_tokens_over_time(tmp_path: Path) -> None:
    version_2(tmp_path / "old")
    write_row(tmp_path / "new", row(5, steady_tok_s=15.0))
    merged = merge([tmp_path / "old", tmp_path / "new"]).to_pylist()
    assert [r["decode_tok_s"] for r in merged] == [pytest.approx(1000 * 200 / sum(HICCUP)), 50.0, None, 15.0]


def test_a_study_of_an_older_version_is_not_continued(cli: Any, place: Path) -> None:
    study = ("study.name=old", "budget.trials=1", "budget.hours=0")
    assert cli(*study)[0] == 0
    manifest = place / "results" / "old" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace(f'"version": {SCHEMA_VERSION}', '"version": 2'))
    status, _, error = cli(*study)
    assert status == 2 and error.count("\n") == 1
    assert "has rows of schema version 2" in error and f"writes version {SCHEMA_VERSION}; start another study" in error


def test_renamed_columns_of_versions_1_to_3_are_read(tmp_path: Path) -> None:
    figures = {"rejected_layers": 3, "window_prediction_recall": 0.5, "prefetch_exact_set": 0.25}
    texts = {"eval_texts": "headrace_v1", "eval_fingerprint": "c" * 16, "quality_from_trial": 7}
    write_row(tmp_path, row(0, schema_version=3, **figures, **texts))
    path = part_path(tmp_path, 0)
    old_names = {new: old for old, new in RENAMED.items()}
    table = pq.read_table(path).drop_columns(["headrace_version"])
    table = table.rename_columns([old_names.get(name, name) for name in table.column_names])
    pq.write_table(table.replace_schema_metadata({"schema_version": "3"}), path)
    assert set(RENAMED) <= set(pq.read_schema(path).names)
    first = read_rows(tmp_path)[0]
    assert {name: first[name] for name in {**figures, **texts}} == {**figures, **texts}
    assert first["headrace_version"] is None and set(first) == set(NAMES)
    write_row(tmp_path, row(1, headrace_version="0.1.0"))
    compact(tmp_path)
    assert read_rows(tmp_path)[0] == first and read_table(tmp_path / "trials.parquet").num_rows == 2


@pytest.mark.parametrize("name", ["demo_ssd_0.1", "demo_ssd_0.3"])
def test_published_studies_are_read_with_the_current_names(name: str) -> None:
    df = read_trials(ROOT / "results" / "published" / name)
    ran = df[df["status"] == "ok"]
    assert tuple(df.columns) == NAMES and set(df["schema_version"]) < {1, 2, 3}
    assert ran["eval_fingerprint"].nunique() == 1 and ran["eval_texts"].notna().all()
    assert ran["rejected_layers"].notna().any() and df["headrace_version"].isna().all()


ACTIVE: list[tuple[dict[str, Any], str | None]] = [
    ({"cold_lowbit": 0.75, "lowbit_share": 0.25, "bits_by": "expert"}, "cold_lowbit=0.75"),
    ({"gate_exponent": 1.0, "bits_by": "layer", "prefetch_cap_mb": None}, "bits_by=layer gate_exponent=1"),
    ({"prefetch": "previous_token", "prefetch_cap_mb": 8.0}, "prefetch_cap_mb=8 prefetch=previous_token"),
    ({"cold_lowbit": 0.0, "lowbit_share": 0.25, "bits_by": "expert", "gate_exponent": 0.0, "prefetch_cap_mb": None}, None),
    ({"cold_lowbit": None, "error_exponent": None}, None),
]


def version_3(folder: Path, removed: dict[str, Any]) -> None:
    """A study of one trial of version 3, with columns of knobs that were removed since."""
    write_row(folder, row(1))
    path = part_path(folder, 1)
    table = pq.read_table(path).drop_columns(["removed_knobs"])
    for name, value in removed.items():
        table = table.drop_columns([name] if name in table.column_names else []).append_column(name, pa.array([value]))
    pq.write_table(table.replace_schema_metadata({"schema_version": "3"}), path)


@pytest.mark.parametrize(("removed", "expected"), ACTIVE)
def test_an_old_row_names_its_active_removed_knobs(tmp_path: Path, removed: dict[str, Any], expected: str | None) -> None:
    version_3(tmp_path / "old", removed)
    (read,) = read_rows(tmp_path / "old")
    assert read["removed_knobs"] == expected and list(read_trials(tmp_path / "old").columns) == list(NAMES)
    compact(tmp_path / "old")
    assert read_rows(tmp_path / "old") == [read]


@pytest.mark.parametrize(("removed", "expected"), ACTIVE)
def test_rows_with_an_active_removed_knob_are_a_setting_of_their_own(
    tmp_path: Path, removed: dict[str, Any], expected: str | None
) -> None:
    version_3(tmp_path / "old", removed)
    write_row(tmp_path / "new", {**row(1), "row_id": "new"})
    rows = write_merged(tmp_path / "both", [tmp_path / "new", tmp_path / "old"]).to_pylist()
    numbered = [(1, None), (2, expected)] if expected else [(1, None), (1, None)]
    assert [(r["trial"], r["removed_knobs"]) for r in rows] == numbered
    (old,) = read_rows(tmp_path / "old")
    assert (cannot_run(old) == f"this version cannot run it: {expected} was removed") == bool(expected)
    assert (commands_of(tmp_path, int(old["trial"]), old) == {}) == bool(expected)
    figures = {"perplexity": 9.0, "quality_from_trial": None}
    assert (quality_source([{**old, **figures}], {"cache_gb": old["cache_gb"]}) is None) == bool(expected)


def test_the_chunk_of_an_older_row_is_its_knob(tmp_path: Path) -> None:
    write_row(tmp_path, row(0, schema_version=5, prefill_chunk=512, prefill_chunk_used=None))
    write_row(tmp_path, row(1, prefill_chunk=0, prefill_chunk_used=None))  # an engine that does not report it
    (path,) = [p for p in (tmp_path / "trials").iterdir() if "000000" in p.name]
    table = pq.read_table(path).drop_columns(["prefill_chunk_used"])
    pq.write_table(table.replace_schema_metadata({"schema_version": "5"}), path)
    assert [r["prefill_chunk_used"] for r in read_rows(tmp_path)] == [512, None]
