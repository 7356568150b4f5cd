"""The command bench refuses options without effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.__main__ import main

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    "options",
    [
        ["bench", "io", "--sync-window", "all"],
        ["bench", "decode", "--cache-gb", "0.01"],
        ["bench", "decode", "--trace", "ROUTING", "--prefetch", "stale_gate"],
    ],
)
def test_a_bench_refuses_what_it_would_ignore(capsys: Capture, options: list[str]) -> None:
    routing = str(Path(__file__).parents[3] / "experiments" / "kimi_mini" / "routing_trace.parquet")
    assert main([routing if o == "ROUTING" else o for o in options]) == 2
    assert "has no effect: bench" in capsys.readouterr().err
