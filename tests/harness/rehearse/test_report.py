"""Tests of a rehearsal's report: strict ceilings, the mark in every row, and notes."""

from __future__ import annotations

from typing import Any

import pytest

from harness.forecast.study.fit import Speed
from harness.rehearse.report import document, notes, print_report

FACTS = {
    "model": "kimi_k2_5 (rehearsal: random weights)", "layers": 60, "experts": 384, "top_k": 8, "expert_mb": 24.77,
    "distinct_layers": 3, "disk_gb": 38.5, "full_experts_gb": 570.0, "resident_gb": 6.8, "gb_per_token_without_cache": 11.9,
}  # fmt: skip

FORECAST = Speed(0.3, 0.2, 0.45)


def answer(held_s: float, io_mode: str = "direct", window: int = 1) -> dict[str, Any]:
    return {
        "plain_gbps": [2.0, 2.0], "tok_s": [0.25, 0.25], "held_s": [held_s, held_s], "missing_gb": [6.0, 6.0],
        "read_gb": [6.1, 6.1], "disk_gb": [None, 6.2], "hit_rate": [0.5, 0.5], "io_ms": [3000.0, 3000.0],
        "sync_ms": [5.0, 5.0],
        "tokens": 24, "mode": "streamed float32 cpu direct, rehearsal: random weights", "mapped": "8 recorded layers for 60",
        "knobs": {"cache_gb": 24.0, "sync_window": window, "io_mode": io_mode}, "cached": 0.042, "passes_per_token": None,
        "peak_memory_gb": 33.0, "mlx_peak_gb": 31.0, "predicted_peak_gb": 32.5,
    }  # fmt: skip


def test_ceilings_take_the_fastest_computation() -> None:
    found = document(FACTS, "made up", [(answer(1.0), None), (answer(0.5, window=0), FORECAST)])
    assert found["compute_ms"] == 500 and found["plain_gbps"][1] == 2
    assert [row["forecast_tok_s"] for row in found["rows"]] == [None, [0.2, 0.3, 0.45]]
    for row in found["rows"]:
        assert row["about"] == "rehearsal: random weights"
        assert row["share_of_serial"][1] == pytest.approx(0.25 * (6 / 2 + 0.5))
        assert row["share_of_overlapped"][1] == pytest.approx(0.25 * 6 / 2) and row["disk_gb_per_token"] == 6.2


def test_the_printed_report_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(document(FACTS, "made up with the locality of x", [(answer(1.0), None), (answer(0.5, window=0), FORECAST)]))
    out = capsys.readouterr().out
    for text in ("rehearsal: random weights", "3 layers have records of their own", "11.9 GB", "8 recorded layers for 60",
                 "all", "0.3 (0.2..0.45)", "0.88 (0.88..0.88)", "33 (32.5)"):  # fmt: skip
        assert text in out, text


def test_settings_without_figures_are_noted() -> None:
    found = document(FACTS, "made up", [(answer(1.0), None)], 2)
    assert notes(found) == ["note: 2 of 3 settings have no figures"]


def test_shared_records_in_the_page_cache_are_noted() -> None:
    found = document(FACTS, "made up", [(answer(1.0, "buffered"), None)])
    assert "the page cache holds shared records" in notes(found)[0]
    assert not notes({**found, "distinct_layers": 60}) and not notes(document(FACTS, "made up", [(answer(1.0), None)]))
