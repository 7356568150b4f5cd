"""Rows are written whole, once, and never changed, wherever the process ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from stored import row

from harness import ResultsError
from harness.results import writing
from harness.results.parquet import part_path
from harness.results.rows import read_rows, read_tokens, read_trials
from harness.results.writing import compact, refresh, set_damaged_aside, write_row, write_tokens


def test_a_row_must_be_complete(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="typo"):
        write_row(tmp_path, {**row(0), "typo": 1})


def test_unfinished_writes_are_not_rows(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    leftover = tmp_path / "trials" / ".part-000001-00.parquet.tmp"
    leftover.write_bytes(b"PAR1 half")
    assert len(pd.read_parquet(tmp_path / "trials")) == 1
    assert set_damaged_aside(tmp_path) == []
    assert not leftover.exists()


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_are_never_changed(tmp_path: Path, rows: int) -> None:
    for run in range(rows):
        write_row(tmp_path, row(5, run=run))
    before = read_rows(tmp_path)
    write_row(tmp_path, row(5))
    for _ in range(2):
        with pytest.raises(ResultsError, match=r"trial 5, run 0 of .* already has a row \(id-5-0\), .* give the row other"):
            write_row(tmp_path, row(5, row_id="other"))
        with pytest.raises(ResultsError, match="already has a row"):
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


def test_trials_parquet_is_at_most_a_few_rows_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "REFRESH_ROWS", 4)
    seen = []
    for trial in range(14):
        write_row(tmp_path, row(trial))
        refresh(tmp_path)
        seen.append(len(pd.read_parquet(tmp_path / "trials.parquet")))
    assert seen[:5] == [1, 2, 3, 4, 5] and seen == sorted(seen)
    assert all(have >= trial + 1 - 3 for trial, have in enumerate(seen))
    assert len(read_rows(tmp_path)) == 14


class Killed(BaseException):
    """Stands for kill -9: nothing after this point happens."""


STEPS = [(os, "replace"), (Path, "unlink"), (pq.ParquetWriter, "write_table")]
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("fault", [Killed("killed"), FULL], ids=["killed", "full"])
def test_no_row_is_lost_or_doubled_wherever_the_process_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: BaseException
) -> None:
    """A search of two trials ends before each step that changes the disk, one step after the other."""
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
        message = r"^killed$|cannot be written \(No space left on device\); make room, then run the same command again"
        with pytest.raises((Killed, ResultsError), match=message):
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


def test_tokens_whose_row_was_never_written_are_dropped(tmp_path: Path) -> None:
    write_tokens(tmp_path, "id-0-0", 0, 0, [1.0, 2.0])
    write_row(tmp_path, row(0))
    write_tokens(tmp_path, "orphan", 1, 0, [9.0])
    os.utime(part_path(tmp_path, 1, 0, "tokens"), (2e9, 2e9))  # as by a clock that is ahead
    compact(tmp_path)
    assert not list((tmp_path / "tokens").iterdir())
    assert set(read_tokens(tmp_path)["row_id"]) == set(pd.read_parquet(tmp_path / "tokens.parquet")["row_id"]) == {"id-0-0"}
