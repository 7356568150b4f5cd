"""Tests of the table of `bench decode`: a row per setting, and dashes for figures that a setting lacks."""

from __future__ import annotations

from typing import Any

import pytest

from engine.bench.decoding.decode_table import print_table

SHARES = {"share_of_resident": (0.4, 0.5, 0.6), "share_of_serial": (0.7, 0.8, 0.9), "share_of_overlapped": (0.6, 0.7, 0.8)}
ROW: dict[str, Any] = {
    "cached": 0.25, "average_bits": 3.5, "window": "all", "decode_tok_s": (9, 10, 11), "hit_rate": 0.75,
    "passes_per_token": 2.0, **SHARES,
}  # fmt: skip
RESIDENT = ROW | {"cached": None, "window": "-", "hit_rate": None, "passes_per_token": None} | dict.fromkeys(SHARES)


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"mode": "streamed", "routing": "forced from a trace", "io_gbps": (1, 2, 3), "window_recall": [0.886, 0.938]}
    print_table(result | {"rows": [RESIDENT, ROW]})
    out = capsys.readouterr().out
    *_, head, resident, streamed = out.splitlines()
    assert head.split()[:4] == ["cached", "bits", "window", "tok/s"]
    assert resident.split() == ["resident", "3.5", "-", "10.0", *"-----"]
    assert streamed.split() == [
        "25.0%", "3.5", "all", "10.0", "0.50", "(0.40..0.60)", "0.80", "(0.70..0.90)", "0.70", "0.750", "2.00",
    ]  # fmt: skip


def test_the_limit_on_recall_is_shown_only_if_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    result = {"mode": "streamed", "routing": "forced from a trace", "io_gbps": (1, 2, 3), "rows": [ROW]}
    print_table(result | {"window_recall": [0.886, 0.938]})
    assert "limited to 0.89, 0.94" in capsys.readouterr().out
    print_table(result | {"window_recall": None})
    assert "limited" not in capsys.readouterr().out
