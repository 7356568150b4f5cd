"""One Parquet file: typed, whole or not there, readable while it is replaced, and by other libraries too."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stored import row

from harness import ResultsError
from harness.report import main as report
from harness.results import parquet
from harness.results.columns import COLUMNS, NAMES, SCHEMA_VERSION
from harness.results.parquet import SCHEMA, part_path
from harness.results.rows import read_rows, read_trials
from harness.results.writing import compact, refresh, set_damaged_aside, write_row, write_tokens


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


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.99])
def test_a_file_cut_short_is_named_in_one_line(tmp_path: Path, keep: float, capsys: pytest.CaptureFixture[str]) -> None:
    write_row(tmp_path, row(0))
    write_row(tmp_path, row(1))
    path = part_path(tmp_path, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(ResultsError, match=r"part-000001-00\.parquet is truncated or damaged; run its study again"):
        read_trials(tmp_path)
    assert report([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert len(set_damaged_aside(tmp_path)) == 1
    assert len(read_trials(tmp_path)) == 1


def test_a_file_replaced_between_footer_and_data_gives_the_rows_of_its_footer(tmp_path: Path) -> None:
    path = tmp_path / "trials.parquet"
    for trial in range(5):
        before = pd.read_parquet(path) if trial else None
        footer = pq.read_metadata(path) if trial else None
        write_row(tmp_path, row(trial))
        (refresh if trial % 2 else compact)(tmp_path)
        if before is not None:
            pd.testing.assert_frame_equal(pq.ParquetFile(path, metadata=footer).read().to_pandas(), before)


def test_a_replaced_file_stays_below_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_REPLACED_BYTES", 300_000)
    for trial in range(9):
        write_row(tmp_path, row(trial))
        refresh(tmp_path)
        assert (tmp_path / "trials.parquet").stat().st_size < 400_000
        assert len(pd.read_parquet(tmp_path / "trials.parquet")) == trial + 1


def test_pandas_duckdb_and_polars_agree(tmp_path: Path) -> None:
    write_row(tmp_path, row(0, expert_bits=None, feasible=None, decode_tok_s=None, note="a, \u201cb\u201d"))
    write_row(tmp_path, row(1, expert_bits=4, feasible=True, decode_tok_s=1e300))
    write_tokens(tmp_path, "id-1-0", 1, 0, [1.5, 2.5])
    compact(tmp_path)
    path = str(tmp_path / "trials.parquet")
    by_pandas = pd.read_parquet(path, dtype_backend="pyarrow")
    duckdb.sql("SET TimeZone='Etc/UTC'")
    by_duckdb = duckdb.sql(f"FROM '{path}'").to_arrow_table()
    by_polars = pl.read_parquet(path)
    rows = read_rows(tmp_path)
    assert by_polars.columns == by_duckdb.column_names == list(by_pandas.columns) == list(NAMES)
    assert by_polars.to_dicts() == by_duckdb.to_pylist() == rows
    assert [{k: None if v is pd.NA else v for k, v in r.items()} for r in by_pandas.to_dict("records")] == rows
    kinds = {"float": pl.Float64, "int": pl.Int64, "str": pl.String, "bool": pl.Boolean, "time": pl.Datetime("us", "UTC")}
    assert dict(by_polars.schema) == {c.name: kinds[c.kind] for c in COLUMNS}
    utc = pa.timestamp("us", "Etc/UTC")
    assert by_duckdb.schema.types == [utc if f.type == pa.timestamp("us", "UTC") else f.type for f in SCHEMA]
    mean = f"SELECT avg(wall_ms) FROM '{path}' JOIN '{tmp_path}/tokens.parquet' USING (row_id)"
    assert duckdb.sql(mean).fetchall() == [(2.0,)]


def test_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    path = part_path(tmp_path, 0)
    newer = pq.read_table(path).replace_schema_metadata({"schema_version": str(SCHEMA_VERSION + 1)})
    pq.write_table(newer, path)
    for read in (read_rows, read_trials, compact, set_damaged_aside):
        with pytest.raises(ResultsError, match=rf"has rows of version {SCHEMA_VERSION + 1}; .* update headrace"):
            read(tmp_path)
    assert path.exists()


def test_unknown_columns_are_left_out(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    table = pq.read_table(part_path(tmp_path, 0))
    pq.write_table(table.append_column("mine", [[1]]), tmp_path / "mine.parquet")
    assert tuple(read_trials(tmp_path / "mine.parquet").columns) == NAMES
