"""The ledger: one line a run, always what the rows and the front say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import Knobs
from harness.results.columns import NAMES
from harness.results.metrics import OBJECTIVES
from harness.show.ledger import NAME, header, lines, write_ledger

START = datetime(2026, 1, 1, tzinfo=UTC)


def row(trial: int, figures: tuple[float | None, ...] = (10.0, 1.0, 4.0), /, **more: Any) -> dict[str, Any]:
    knobs = Knobs(**{"cache_gb": 0.01, **{k: more.pop(k) for k in list(more) if k in Knobs.names()}})
    given = {"row_id": f"r{trial}.{more.get('run', 0)}", "trial": trial, "run": 0, "round": 1, "status": "ok",
             "eval_fingerprint": "j", "origin": "anchor" if trial == 1 else "sampler",
             "started_at": START + timedelta(minutes=trial), **knobs.as_dict()}  # fmt: skip
    return {**dict.fromkeys(NAMES), **given, **dict(zip(OBJECTIVES, figures, strict=True)), **more}


def cells(*rows: dict[str, Any]) -> dict[str, str]:
    """The last row's line."""
    return dict(zip(header(OBJECTIVES).split("\t"), lines(rows, OBJECTIVES)[-1].split("\t"), strict=True))


def test_what_differs_from_the_default_and_the_outcome() -> None:
    default = row(1, read_threads=4, read_block_kib=512)
    line = cells(default, row(4, (11.1, 1.4, 4.0), read_threads=8, read_block_kib=1024))
    assert line["sentence"] == "vs the default: read_block_kib 512 -> 1024, read_threads 4 -> 8: +11 % tok/s, +0.4 GB"
    assert [line[n] for n in ("status", "standing", "decode_tok_s", "trial")] == ["ok", "front", "11.1", "4"]
    assert cells(default)["sentence"] == "the default: 10 tok/s, 1 GB, 4 ppl"
    assert "no default" in cells(row(4))["sentence"]


@pytest.mark.parametrize(
    ("more", "status", "standing", "part"),
    [
        ({}, "ok", "dominated", "-50 % tok/s"),
        ({"status": "oom", "status_reason": "9 GB\tare\nabove 8"}, "oom", "-", "oom: 9 GB are above 8"),
        ({"feasible": False, "violated": "peak_memory_gb <= 0.5"}, "infeasible", "-", "peak_memory_gb <= 0.5"),
        ({"suspect": "heat"}, "suspect", "-", "suspect: heat"),
        ({"trial": 1, "run": 1, "origin": "confirm"}, "ok", "front", "measured once more: -50 % tok/s against run 0"),
        ({"origin": "reference"}, "ok", "-", "everything resident: 5 tok/s"),
    ],
)
def test_what_became_of_a_run_and_where_its_trial_stands(
    more: dict[str, Any], status: str, standing: str, part: str
) -> None:
    figures = (None, None, None) if more.get("status") else (5.0, 1.0, 4.0)
    line = cells(row(1), {**row(2, figures), **more})
    assert (line["status"], line["standing"]) == (status, standing)
    assert part in line["sentence"]
    assert line["decode_tok_s"] == ("-" if more.get("status") else "5")


def test_words_unset_and_idle_knobs() -> None:
    default = row(1, io_mode="buffered", prefetch="stale_gate", prefetch_depth=2)
    sentence = cells(default, row(2, io_mode="direct", expert_bits=4))["sentence"]
    assert "io_mode buffered -> direct" in sentence
    assert "prefetch stale_gate -> off, prefetch_depth 2 -> idle" in sentence
    assert "expert_bits unset -> 4" in sentence


def test_whatever_was_in_the_file_it_says_what_the_rows_say(tmp_path: Path) -> None:
    rows = [
        row(1),
        row(2, (20.0, 2.0, 4.0), read_threads=3),
        row(1, (9.0, 1.0, 4.0), run=1, started_at=START.replace(hour=1)),
    ]
    write_ledger(tmp_path, rows, OBJECTIVES)
    whole = (tmp_path / NAME).read_bytes()
    assert whole.count(b"\n") == 4
    (tmp_path / NAME).write_bytes(whole[:50] + b"\xff cut short")
    write_ledger(tmp_path, rows[::-1], OBJECTIVES)
    assert (tmp_path / NAME).read_bytes() == whole
