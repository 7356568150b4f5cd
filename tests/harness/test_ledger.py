"""The ledger: one line a run, true to the rows after any kill, and a sentence that says what mattered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import Knobs
from harness.columns import NAMES, OBJECTIVES
from harness.ledger import NAME, append, header, ledger_line, mend

START = datetime(2026, 1, 1, tzinfo=UTC)


def row(trial: int, figures: tuple[float | None, ...] = (10.0, 1.0, 4.0), /, **more: Any) -> dict[str, Any]:
    knobs = Knobs(**{"cache_gb": 0.01, **{k: more.pop(k) for k in list(more) if k in Knobs.names()}})
    given = {"row_id": f"r{trial}.{more.get('run', 0)}", "trial": trial, "run": 0, "round": 1, "status": "ok",
             "origin": "sampler", "started_at": START + timedelta(minutes=trial), **knobs.as_dict()}  # fmt: skip
    return {**dict.fromkeys(NAMES), **given, **dict(zip(OBJECTIVES, figures, strict=True)), **more}


def cells(line: str) -> dict[str, str]:
    return dict(zip(header(OBJECTIVES).split("\t"), line.split("\t"), strict=True))


def test_the_nearest_point_of_the_front_and_what_came_of_it() -> None:
    before = [
        row(1, read_threads=4, read_block_kib=512),
        row(2, (20.0, 3.0, 4.0), read_threads=4, read_block_kib=8192, cache_gb=0.04),
        row(3, (5.0, 4.0, 4.5), read_threads=8, read_block_kib=1024),  # dominated: no neighbour, however near
    ]
    line = cells(ledger_line(row(4, (11.1, 1.4, 4.0), read_threads=8, read_block_kib=1024), before, OBJECTIVES))
    assert line["sentence"] == "vs trial 1: read_block_kib 512 -> 1024, read_threads 4 -> 8: +11 % tok/s, +0.4 GB"
    assert (line["status"], line["decode_tok_s"], line["trial"]) == ("kept", "11.1", "4")


@pytest.mark.parametrize(
    ("more", "word", "part"),
    [
        ({}, "dominated", "-50 % tok/s"),
        ({"status": "oom", "status_reason": "9 GB\tare\nabove 8"}, "oom", "oom: 9 GB are above 8"),
        ({"feasible": False, "violated": "peak_memory_gb <= 0.5"}, "infeasible", "peak_memory_gb <= 0.5"),
        ({"suspect": "heat"}, "suspect", "suspect: heat"),
        ({"trial": 1, "run": 1, "origin": "confirm"}, "confirm", "measured once more: -50 % tok/s against run 0"),
    ],
)
def test_the_word_says_what_became_of_it(more: dict[str, Any], word: str, part: str) -> None:
    figures = (None, None, None) if more.get("status") else (5.0, 1.0, 4.0)
    line = cells(ledger_line({**row(2, figures), **more}, [row(1)], OBJECTIVES))
    assert line["status"] == word
    assert part in line["sentence"]
    assert line["decode_tok_s"] == ("-" if more.get("status") else "5")


def test_words_unset_and_idle_knobs_are_said() -> None:
    before = [row(1, io_mode="buffered", prefetch="stale_gate", prefetch_depth=2)]
    sentence = cells(ledger_line(row(2, io_mode="direct", expert_bits=4), before, OBJECTIVES))["sentence"]
    assert "io_mode buffered -> direct" in sentence
    assert "prefetch stale_gate -> off, prefetch_depth 2 -> idle" in sentence
    assert "expert_bits unset -> 4" in sentence


def test_a_ledger_cut_anywhere_is_mended_to_the_same_file(tmp_path: Path) -> None:
    again = row(1, (9.0, 1.0, 4.0), run=1, started_at=START.replace(hour=1))
    rows = [row(1), row(2, (20.0, 2.0, 4.0), read_threads=3), again]
    mend(tmp_path, [], OBJECTIVES)
    for i, r in enumerate(rows):
        append(tmp_path, r, rows[:i], OBJECTIVES)
    whole = (tmp_path / NAME).read_bytes()
    assert whole.count(b"\n") == 4
    for cut in range(0, len(whole), 7):
        (tmp_path / NAME).write_bytes(whole[:cut])
        mend(tmp_path, rows, OBJECTIVES)
        assert (tmp_path / NAME).read_bytes() == whole
    doubled = whole + whole.splitlines(keepends=True)[-1] + b"r9.0\tof a row that was lost\n"
    (tmp_path / NAME).write_bytes(doubled)
    mend(tmp_path, rows[::-1], OBJECTIVES)
    assert (tmp_path / NAME).read_bytes() == whole
