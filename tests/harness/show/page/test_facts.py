"""Facts in words: three sentences in every state of a study, failures, memory, and texts without private paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from made import rows_of, summary_of

from harness.show.page import facts


def test_three_sentences(tmp_path: Path) -> None:
    rows = rows_of()
    config = {"search_space": {"a": 1, "b": 2}, "constraints": ["perplexity <= 6"]}
    summary = summary_of(tmp_path, rows, config=config)
    asked, found, certain = facts.sentences(summary)
    assert asked.startswith(
        "The search varied 2 knobs of tiny on a machine with M9 (8 cores), for the best decoding speed, "
    )
    assert "with perplexity <= 6; 27 trials ran in " in asked
    assert found.startswith(f"The setting fastest is trial {summary.choices[1].trial} with ")
    assert f"The front has {len(summary.front)} settings, {summary.front['confirmed'].sum()} of them confirmed" in certain
    assert "2 trials failed" in certain


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "No trial has run yet."),
        ([r for r in rows_of() if r["status"] == "oom"], "the last error was: out of memory: 3.1 GB."),
        ([r for r in rows_of() if r["origin"] == "reference"], "the last error was: no streamed trial has run."),
        ([r for r in rows_of() if r["trial"] == 1 and r["run"] == 0], "it is the default itself"),
        ([r for r in rows_of() if r["trial"] in (5, 6)], "No measured setting meets the rule"),
    ],
)
def test_sentences_of_small_studies(rows: list[dict[str, object]], said: str, tmp_path: Path) -> None:
    assert said in facts.sentences(summary_of(tmp_path, rows))[1]


def test_failures_and_memory(tmp_path: Path) -> None:
    summary = summary_of(tmp_path, rows_of())
    assert facts.failures(summary.df) == [("oom: out of memory: N GB", 1, 25), ("crash: exit status N", 1, 26)]
    assert facts.memory_forecast(summary).startswith("Over 26 trials the measured peak is ")
    assert facts.memory_forecast(summary_of(tmp_path, rows_of(predicted_peak_gb=None))) == ""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("--model /home/alice/models/k", "--model ~/models/k"),
        ("judge=../../Users/alice/x and '/home/bob/y'", "judge=~/x and '~/y'"),
        ("storage.url=postgresql://me:secret@db.local/x a=1", "storage.url=URL a=1"),
        ("/data/homes/x", "/data/homes/x"),
    ],
)
def test_published_texts_have_no_home_folder_and_no_address(text: str, shown: str) -> None:
    assert facts.scrubbed(text) == shown


def test_repeat_needs_a_command(tmp_path: Path) -> None:
    assert [c.text for c in facts.repeat(summary_of(tmp_path, []))] == [f"python -m harness.report {tmp_path.name}"]
    again = facts.repeat(summary_of(tmp_path, rows_of(), command="python -m harness.search study=demo"))
    assert again[0].text == "python -m harness.search study=demo"
