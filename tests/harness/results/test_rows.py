"""Readers get every row once, at any moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from stored import row

from harness import ResultsError
from harness.report import main as report
from harness.results import rows
from harness.results.parquet import part_path
from harness.results.rows import read_rows, read_trials
from harness.results.writing import compact, refresh, write_row


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


def test_a_folder_without_rows_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report([str(tmp_path / "nowhere")]) == 2
    assert "nowhere is neither a study's folder nor the name of a study under results/" in capsys.readouterr().err


def test_rows_of_several_evaluation_texts_are_refused_unless_allowed(tmp_path: Path) -> None:
    write_row(tmp_path, row(0))
    write_row(tmp_path, row(1, eval_fingerprint="b" * 16))
    with pytest.raises(ResultsError, match="rows of 2 sets of evaluation texts"):
        read_trials(tmp_path)
    assert len(read_trials(tmp_path, mixed_texts=True)) == 2


def test_a_part_from_another_study_is_read_although_its_name_is_held(tmp_path: Path) -> None:
    write_row(tmp_path / "a", row(0))
    compact(tmp_path / "a")
    write_row(tmp_path / "b", row(0, row_id="other"))
    part_path(tmp_path / "b", 0).rename(part_path(tmp_path / "a", 0))
    compact(tmp_path / "a")
    assert [r["row_id"] for r in read_rows(tmp_path / "a")] == ["id-0-0", "other"]


def test_readers_never_see_fewer_rows_or_a_row_twice(tmp_path: Path) -> None:
    """Two writers compact at any time; our reader and pandas read the same folder."""
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


def test_a_reader_retries_when_a_compaction_removes_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for trial in range(3):
        write_row(tmp_path, row(trial))
    real = rows.read_file

    def read(path: Path, *args: Any) -> Any:
        if path == part_path(tmp_path, 1):
            monkeypatch.setattr(rows, "read_file", real)
            compact(tmp_path)
        return real(path, *args)

    monkeypatch.setattr(rows, "read_file", read)
    assert [r["trial"] for r in read_rows(tmp_path)] == [0, 1, 2]
    assert rows.read_file is real and not list((tmp_path / "trials").iterdir())
