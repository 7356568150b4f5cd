"""Rows on the disk: whole or not there, readable at any moment, typed, and documented."""

from __future__ import annotations

import dataclasses
import errno
import os
import threading
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import row

from engine import Knobs, Measurement
from harness import ROOT, ResultsError
from harness.decisions.reuse import quality_source
from harness.merge import merge, write_merged
from harness.report import main as report
from harness.results import rows as rows_module
from harness.results.columns import COLUMNS, NAMES, SCHEMA_VERSION, TOKEN_COLUMNS, markdown
from harness.results.rows import (
    SCHEMA,
    compact,
    part_path,
    read_rows,
    read_tokens,
    read_trials,
    refresh,
    set_damaged_aside,
    write_row,
    write_tokens,
)
from harness.show.commands import use


def test_all_knobs_and_figures_have_columns() -> None:
    assert set(Knobs.names()) <= set(NAMES)
    figures = {f.name for f in dataclasses.fields(Measurement)} - {"token_ms", "ended_early"}  # a dataset, and a status
    assert figures == set(Measurement.names()) == set(Measurement(1.0, 1.0, None).as_dict()) and figures <= set(NAMES)
    assert len(set(NAMES)) == len(NAMES)
    assert all(c.text for c in COLUMNS)


def test_round_trip_keeps_types_and_nulls(tmp_path: Path) -> None:
    written = row(3, expert_bits=4, status="oom", status_reason="too much", decode_tok_s=None)
    write_row(tmp_path, written)
    assert read_rows(tmp_path) == [written]
    assert pq.read_schema(part_path(tmp_path, 3)).equals(SCHEMA)
    df = pd.read_parquet(tmp_path / "trials")
    assert df["decode_tok_s"].isna().all()
    assert str(df["started_at"].dt.tz) == "UTC"


def test_a_first_row_without_figures_does_not_spoil_the_types(tmp_path: Path) -> None:
    write_row(tmp_path, row(0, decode_tok_s=None, perplexity=None, expert_bits=None, status="oom"))
    write_row(tmp_path, row(1, expert_bits=4))
    df = pd.read_parquet(tmp_path / "trials")
    assert df["decode_tok_s"].tolist()[1:] == [11.0]
    assert read_trials(tmp_path)["expert_bits"].tolist()[1:] == [4.0]


def test_a_row_must_be_complete(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="typo"):
        write_row(tmp_path, {**row(0), "typo": 1})


def test_readable_while_written(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    writer = threading.Thread(target=lambda: [write_row(tmp_path, row(i)) for i in range(1, 60)])
    writer.start()
    counts = []
    while writer.is_alive():
        counts.append(len(pd.read_parquet(tmp_path / "trials")))
    writer.join()
    assert counts == sorted(counts)
    assert len(pd.read_parquet(tmp_path / "trials")) == 60


def test_unfinished_writes_are_not_rows(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    leftover = tmp_path / "trials" / ".part-000001-00.parquet.tmp"
    leftover.write_bytes(b"PAR1 half")
    assert len(pd.read_parquet(tmp_path / "trials")) == 1
    assert set_damaged_aside(tmp_path) == []
    assert not leftover.exists()


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_file_cut_short_is_named_in_one_line(tmp_path: Path, keep: float, capsys: pytest.CaptureFixture[str]) -> None:
    write_row(tmp_path, row(0))
    write_row(tmp_path, row(1))
    path = part_path(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(ResultsError, match=r"part-000001-00\.parquet is cut short or damaged; run its study again"):
        read_trials(tmp_path)
    assert report([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert len(set_damaged_aside(tmp_path)) == 1
    assert len(read_trials(tmp_path)) == 1


def test_a_folder_without_rows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is no study: neither a study's folder nor a name under results/" in capsys.readouterr().err


def test_mixed_judges_are_refused_unless_told(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    write_row(tmp_path, row(1, judge="b" * 16))
    with pytest.raises(ResultsError, match="rows of 2 judges"):
        read_trials(tmp_path)
    assert len(read_trials(tmp_path, mixed_judges=True)) == 2


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_are_never_changed(tmp_path: Path, rows: int) -> None:
    for run in range(rows):
        write_row(tmp_path, row(5, run=run))
    before = read_rows(tmp_path)
    write_row(tmp_path, row(5))
    for _ in range(2):
        with pytest.raises(ResultsError, match=r"trial 5, run 0 of .* has a row already \(id-5-0\) .* give the row other"):
            write_row(tmp_path, row(5, row_id="other"))
        with pytest.raises(ResultsError, match="has a row already"):
            write_tokens(tmp_path, "other", 5, 0, [1.0])
        compact(tmp_path)
    assert read_rows(tmp_path) == before


def test_compaction_keeps_every_row_once_in_order(tmp_path: Path) -> None:
    for trial, run in [(2, 0), (0, 0), (1, 0), (0, 1), (1, 11)]:
        write_row(tmp_path, row(trial, run=run))
        write_tokens(tmp_path, f"id-{trial}-{run}", trial, run, [1.0, 2.5 + run])
        refresh(tmp_path)
        assert len(pd.read_parquet(tmp_path / "trials.parquet")) == len(read_rows(tmp_path))
    before, tokens = read_rows(tmp_path), read_tokens(tmp_path)
    assert [(r["trial"], r["run"]) for r in before] == [(0, 0), (0, 1), (1, 0), (1, 11), (2, 0)]
    assert tokens["wall_ms"].tolist() == [1.0, 2.5, 1.0, 3.5, 1.0, 2.5, 1.0, 13.5, 1.0, 2.5]
    for keep in (True, False, False):
        compact(tmp_path, keep_parts=keep)
        assert len(list(tmp_path.glob("t*/part-*"))) == (10 if keep else 0)
        assert read_rows(tmp_path) == before
        pd.testing.assert_frame_equal(read_tokens(tmp_path), tokens)
    assert len(pd.read_parquet(tmp_path / "tokens.parquet")) == 10
    pd.testing.assert_frame_equal(read_trials(tmp_path / "trials.parquet"), read_trials(tmp_path))


def test_a_part_that_came_from_elsewhere_is_not_taken_for_one_that_is_held(tmp_path: Path) -> None:
    write_row(tmp_path / "a", row(0))
    compact(tmp_path / "a")
    write_row(tmp_path / "b", row(0, row_id="other"))
    part_path(tmp_path / "b", 0).rename(part_path(tmp_path / "a", 0))
    compact(tmp_path / "a")
    assert [r["row_id"] for r in read_rows(tmp_path / "a")] == ["id-0-0", "other"]


def test_trials_parquet_lags_little_behind_many_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "REFRESH_ROWS", 4)
    seen = []
    for trial in range(14):
        write_row(tmp_path, row(trial))
        refresh(tmp_path)
        seen.append(len(pd.read_parquet(tmp_path / "trials.parquet")))
    assert seen[:5] == [1, 2, 3, 4, 5] and seen == sorted(seen)
    assert all(have >= trial + 1 - 3 for trial, have in enumerate(seen))
    assert len(read_rows(tmp_path)) == 14


class Killed(BaseException):
    """Stands for kill -9: what the process would have done after this point is not done."""


STEPS = [(os, "replace"), (Path, "unlink"), (rows_module.pq.ParquetWriter, "write_table")]


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fault", [Killed("killed"), FULL], ids=["killed", "full"])
def test_no_row_is_lost_or_doubled_wherever_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    """Before each step that changes the disk, one after the other, a search of two trials ends."""
    count, last = 0, -1
    for where, name in STEPS:
        real = getattr(where, name)

        def step(*args: Any, real: Any = real, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == last:
                raise fault
            return real(*args, **kwargs)

        monkeypatch.setattr(where, name, step)

    written = 0

    def session(folder: Path) -> None:
        nonlocal written
        for trial in range(2):
            write_tokens(folder, f"id-{trial}-0", trial, 0, [1.0, 2.0])
            write_row(folder, row(trial))
            written = trial + 1
            refresh(folder)
        compact(folder)

    session(tmp_path / "whole")
    steps = count
    assert steps >= 20
    for last in range(1, steps + 1):
        folder, count, written = tmp_path / str(last), 0, 0
        said = r"^killed$|cannot be written \(No space left on device\); make room, then run the same command again"
        with pytest.raises((Killed, ResultsError), match=said):
            session(folder)
        count = -(10**9)
        rows = read_rows(folder)
        assert len(rows) in (written, written + 1) and len({r["row_id"] for r in rows}) == len(rows)
        assert read_tokens(folder).groupby("row_id").size().tolist() == [2] * len(rows)
        assert set_damaged_aside(folder) == []
        assert read_rows(folder) == rows
        session(folder)
        assert [r["row_id"] for r in read_rows(folder)] == ["id-0-0", "id-1-0"]
        assert len(pd.read_parquet(folder / "trials.parquet")) == 2
        assert len(pd.read_parquet(folder / "tokens.parquet")) == 4
        assert not [p for p in folder.rglob(".*") if p.is_file()] and not list(folder.rglob("part-*"))


def test_a_file_replaced_between_footer_and_data_gives_the_rows_of_its_footer(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    for trial in range(5):
        before = pd.read_parquet(path) if trial else None
        footer = pq.read_metadata(path) if trial else None
        write_row(tmp_path, row(trial))
        (refresh if trial % 2 else compact)(tmp_path)
        if before is not None:
            pd.testing.assert_frame_equal(pq.ParquetFile(path, metadata=footer).read().to_pandas(), before)


def test_a_replaced_file_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "LONGEST_BYTES", 300_000)
    for trial in range(9):
        write_row(tmp_path, row(trial))
        refresh(tmp_path)
        assert (tmp_path / "trials.parquet").stat().st_size < 400_000
        assert len(pd.read_parquet(tmp_path / "trials.parquet")) == trial + 1


def test_readers_see_no_row_less_and_none_twice(tmp_path: Path) -> None:
    """Two writers that compact as they like, against our reader and pandas on the one file."""
    write_row(tmp_path, row(0))
    compact(tmp_path)

    def work(first: int) -> None:
        for trial in range(first, 41, 2):
            write_row(tmp_path, row(trial))
            (refresh if trial % 3 else compact)(tmp_path)

    writers = [threading.Thread(target=work, args=(first,)) for first in (1, 2)]
    for writer in writers:
        writer.start()
    ours, whole = [], []
    while any(writer.is_alive() for writer in writers):
        ids = [r["row_id"] for r in read_rows(tmp_path)]
        assert len(set(ids)) == len(ids)
        ours.append(len(ids))
        whole.append(len(pd.read_parquet(tmp_path / "trials.parquet")))
    assert ours == sorted(ours) and whole == sorted(whole) and len(set(ours)) > 3
    assert [r["trial"] for r in read_rows(tmp_path)] == list(range(41))


def test_a_reader_that_is_overtaken_by_a_compaction_looks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in range(3):
        write_row(tmp_path, row(trial))
    real = rows_module._read

    def read(path: Path, *args: Any) -> Any:
        if path == part_path(tmp_path, 1):
            monkeypatch.setattr(rows_module, "_read", real)
            compact(tmp_path)
        return real(path, *args)

    monkeypatch.setattr(rows_module, "_read", read)
    assert [r["trial"] for r in read_rows(tmp_path)] == [0, 1, 2]
    assert rows_module._read is real and not list((tmp_path / "trials").iterdir())


def test_tokens_whose_row_was_never_written_are_dropped(tmp_path: Path) -> None:
    write_tokens(tmp_path, "id-0-0", 0, 0, [1.0, 2.0])
    write_row(tmp_path, row(0))
    write_tokens(tmp_path, "dead", 1, 0, [9.0])
    write_tokens(tmp_path, "on its way", 2, 0, [3.0])
    os.utime(part_path(tmp_path, 1, 0, "tokens"), (0, 0))
    compact(tmp_path)
    assert [p.name for p in (tmp_path / "tokens").iterdir()] == ["part-000002-00.parquet"]
    assert set(read_tokens(tmp_path)["row_id"]) == set(pd.read_parquet(tmp_path / "tokens.parquet")["row_id"]) == {"id-0-0"}
    write_row(tmp_path, row(2, row_id="on its way"))
    assert read_tokens(tmp_path)["wall_ms"].tolist() == [1.0, 2.0, 3.0]


def test_pandas_duckdb_and_polars_agree(tmp_path: Path) -> None:
    write_row(tmp_path, row(0, expert_bits=None, feasible=None, decode_tok_s=None, note="a, \u201cb\u201d"))
    write_row(tmp_path, row(1, expert_bits=4, feasible=True, decode_tok_s=float("inf")))
    write_tokens(tmp_path, "id-1-0", 1, 0, [1.5, 2.5])
    compact(tmp_path)
    path = str(tmp_path / "trials.parquet")
    by_pandas = pd.read_parquet(path, dtype_backend="pyarrow")
    duckdb.sql("SET TimeZone='Etc/UTC'")
    by_duckdb = duckdb.sql(f"FROM '{path}'").to_arrow_table()
    by_polars = pl.read_parquet(path)
    told = read_rows(tmp_path)
    assert by_polars.columns == by_duckdb.column_names == list(by_pandas.columns) == list(NAMES)
    assert by_polars.to_dicts() == by_duckdb.to_pylist() == told
    assert [{k: None if v is pd.NA else v for k, v in r.items()} for r in by_pandas.to_dict("records")] == told
    kinds = {"float": pl.Float64, "int": pl.Int64, "str": pl.String, "bool": pl.Boolean, "time": pl.Datetime("us", "UTC")}
    assert dict(by_polars.schema) == {c.name: kinds[c.kind] for c in COLUMNS}
    utc = pa.timestamp("us", "Etc/UTC")
    assert by_duckdb.schema.types == [utc if f.type == pa.timestamp("us", "UTC") else f.type for f in SCHEMA]
    mean = f"SELECT avg(wall_ms) FROM '{path}' JOIN '{tmp_path}/tokens.parquet' USING (row_id)"
    assert duckdb.sql(mean).fetchall() == [(2.0,)]


VERSION_1 = Path(__file__).parents[1] / "data"  # a study of the first version


def test_rows_of_version_1_are_read(tmp_path: Path) -> None:
    old = pq.read_table(VERSION_1 / "trials" / "part-all.parquet")
    df = read_trials(VERSION_1)
    assert tuple(df.columns) == NAMES and df["trial"].tolist() == sorted(old["trial"].to_pylist())
    assert set(df["run"]) == {0} and set(df["round"]) == {1} and set(df["schema_version"]) == {1}
    assert df["row_id"].nunique() == len(df) and df["row_id"].str.startswith("v1-").all() and df["objectives"].isna().all()
    assert read_trials(VERSION_1)["row_id"].tolist() == df["row_id"].tolist()
    (tmp_path / "trials").mkdir()
    for i in range(3):  # as version 1 left them
        pq.write_table(old.slice(i, 1), tmp_path / "trials" / f"part-{old['trial'][i].as_py():06d}.parquet")
    before = read_rows(tmp_path)
    with pytest.raises(ResultsError, match="has a row already"):
        write_row(tmp_path, row(before[0]["trial"]))
    write_row(tmp_path, row(99))
    compact(tmp_path)
    assert read_rows(tmp_path)[:3] == before and len(read_rows(tmp_path)) == 4


def version_2(folder: Path, trials: int = 3) -> None:
    """A study as version 2 left it: the median of stretches in decode_tok_s, in a whole file and in a part; one row by an
    engine without token times, and one that did not run."""
    for trial in range(trials):
        median = {"decode_tok_s": 100.0, "decode_tok_s_low": 99.0, "decode_tok_s_high": 101.0}
        none = {"decode_tok_s": None if trial == 2 else 50.0}
        write_row(folder, row(trial, schema_version=2, steady_tok_s=None, **(median if not trial else none)))
    write_tokens(folder, "id-0-0", 0, 0, HICCUP)
    for path in (folder / "trials").iterdir():
        table = pq.read_table(path).drop_columns(["steady_tok_s"])
        pq.write_table(table.replace_schema_metadata({"schema_version": "2"}), path)


HICCUP = [10.0] * 100 + [1000.0] + [10.0] * 99


def test_rows_of_version_2_get_the_speed_that_the_name_says(tmp_path: Path) -> None:
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
    with pytest.raises(ResultsError, match=r"have another speed in decode_tok_s .*; merge the ones or the others"):
        merge([tmp_path / "old", tmp_path / "new"])


def test_rows_of_version_2_with_their_tokens_are_merged_by_tokens_over_time(tmp_path: Path) -> None:
    version_2(tmp_path / "old")
    write_row(tmp_path / "new", row(5, steady_tok_s=15.0))
    merged = merge([tmp_path / "old", tmp_path / "new"]).to_pylist()
    assert [r["decode_tok_s"] for r in merged] == [pytest.approx(1000 * 200 / sum(HICCUP)), 50.0, None, 15.0]


def test_a_search_does_not_go_on_among_rows_of_version_2(cli: Any, place: Path) -> None:
    study = ("study.name=old", "budget.trials=1", "budget.hours=0")
    assert cli(*study)[0] == 0
    manifest = place / "results" / "old" / "manifest.json"
    before = manifest.read_text()
    manifest.write_text(before.replace(f'"version": {SCHEMA_VERSION}', '"version": 2'))
    status, _, error = cli(*study)
    assert status == 2 and error.count("\n") == 1
    assert "written by version 2 of the search, this is version 3; start another study with study.name=OTHER" in error


ACTIVE: list[tuple[dict[str, Any], str | None]] = [
    ({"cold_lowbit": 0.75, "lowbit_share": 0.25, "bits_by": "expert"}, "cold_lowbit=0.75"),
    ({"gate_exponent": 1.0, "bits_by": "layer", "prefetch_cap_mb": None}, "bits_by=layer gate_exponent=1"),
    ({"prefetch": "previous_token", "prefetch_cap_mb": 8.0}, "prefetch_cap_mb=8 prefetch=previous_token"),
    ({"cold_lowbit": 0.0, "lowbit_share": 0.25, "bits_by": "expert", "gate_exponent": 0.0, "prefetch_cap_mb": None}, None),
    ({"cold_lowbit": None, "error_exponent": None}, None),
]


def version_3(folder: Path, removed: dict[str, Any]) -> None:
    """A study of one trial as version 3 left it, with columns of knobs that were removed since."""
    write_row(folder, row(1))
    path = part_path(folder, 1)
    table = pq.read_table(path).drop_columns(["removed_knobs"])
    for name, value in removed.items():
        table = table.drop_columns([name] if name in table.column_names else []).append_column(name, pa.array([value]))
    pq.write_table(table.replace_schema_metadata({"schema_version": "3"}), path)


@pytest.mark.parametrize(("removed", "said"), ACTIVE)
def test_an_old_row_names_its_active_removed_knobs(tmp_path: Path, removed: dict[str, Any], said: str | None) -> None:
    version_3(tmp_path / "old", removed)
    (read,) = read_rows(tmp_path / "old")
    assert read["removed_knobs"] == said and list(read_trials(tmp_path / "old").columns) == list(NAMES)
    compact(tmp_path / "old")
    assert read_rows(tmp_path / "old") == [read]


@pytest.mark.parametrize(("removed", "said"), ACTIVE)
def test_an_active_removed_knob_is_a_setting_of_its_own(tmp_path: Path, removed: dict[str, Any], said: str | None) -> None:
    version_3(tmp_path / "old", removed)
    write_row(tmp_path / "new", {**row(1), "row_id": "new"})
    rows = write_merged(tmp_path / "both", [tmp_path / "new", tmp_path / "old"]).to_pylist()
    assert [(r["trial"], r["removed_knobs"]) for r in rows] == ([(1, None), (2, said)] if said else [(1, None), (1, None)])
    (old,) = read_rows(tmp_path / "old")
    assert (use(tmp_path, old) == f"(this version cannot run it: {said} was removed)") == bool(said)
    figures = {"perplexity": 9.0, "quality_of": None}
    assert (quality_source([{**old, **figures}], {"cache_gb": old["cache_gb"]}) is None) == bool(said)


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    path = part_path(tmp_path, 0)
    newer = pq.read_table(path).replace_schema_metadata({"schema_version": str(SCHEMA_VERSION + 1)})
    pq.write_table(newer, path)
    for read in (read_rows, read_trials, compact, set_damaged_aside):
        with pytest.raises(ResultsError, match=rf"has rows of version {SCHEMA_VERSION + 1}, .* update headrace"):
            read(tmp_path)
    assert path.exists()


def test_columns_that_are_not_ours_are_left_out(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    table = pq.read_table(part_path(tmp_path, 0))
    pq.write_table(table.append_column("mine", [[1]]), tmp_path / "mine.parquet")
    assert tuple(read_trials(tmp_path / "mine.parquet").columns) == NAMES


def test_the_documented_columns_are_current() -> None:
    text = (ROOT / "results" / "README.md").read_text()
    assert markdown() in text, "run python -m harness.results.columns"
    assert markdown(TOKEN_COLUMNS) in text, "run python -m harness.results.columns"
