"""Rows on the disk: whole or not there, readable at any moment, typed, and documented."""

from __future__ import annotations

import dataclasses
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from engine import Knobs, Measurement
from harness import ROOT, ResultsError
from harness.columns import COLUMNS, NAMES, SCHEMA, markdown
from harness.report import main as report
from harness.rows import part_path, read_rows, read_trials, set_damaged_aside, write_row


def row(trial: int, **values: Any) -> dict[str, Any]:
    given = {"trial": trial, "status": "ok", "origin": "sampler", "judge": "a" * 16, "study": "demo", "model": "m",
             "device": "d", "decode_tok_s": 10.0 + trial, "peak_memory_gb": 1.0 + trial, "perplexity": 4.0, "cache_gb": 0.1,
             "evict_half_life": 16.0, "prefetch_depth": 0, "read_block_kib": 64, "read_threads": 1 + trial,
             "io_mode": "direct", "started_at": datetime(2026, 1, 1, tzinfo=UTC)}  # fmt: skip
    return {**dict.fromkeys(NAMES), **given, **values}


def test_all_knobs_and_figures_have_columns() -> None:
    assert set(Knobs.names()) <= set(NAMES)
    figures = {f.name for f in dataclasses.fields(Measurement)} - {"token_ms", "ended_early"}  # a dataset, and a status
    assert figures == set(Measurement(1.0, 1.0, None).as_dict()) and figures <= set(NAMES)
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
    leftover = tmp_path / "trials" / ".part-000001.parquet.tmp"
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
    with pytest.raises(ResultsError, match=r"part-000001\.parquet is cut short or damaged; run its study again"):
        read_trials(tmp_path)
    assert report([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert len(set_damaged_aside(tmp_path)) == 1
    assert len(read_trials(tmp_path)) == 1


def test_a_folder_without_rows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(tmp_path / "nowhere")]) == 2
    assert "nowhere holds no trials; give the folder of a study" in capsys.readouterr().err


def test_mixed_judges_are_refused_unless_told(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    write_row(tmp_path, row(1, judge="b" * 16))
    with pytest.raises(ResultsError, match="rows of 2 judges"):
        read_trials(tmp_path)
    assert len(read_trials(tmp_path, mixed_judges=True)) == 2


def test_the_documented_columns_are_current() -> None:
    assert markdown() in (ROOT / "results" / "README.md").read_text(), "run python -m harness.columns"
