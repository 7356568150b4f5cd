"""Tests of the tables of `bench beside`."""

from __future__ import annotations

from typing import Any

import pytest

from engine.bench.beside.table import PARTS, print_bookkeeping, print_setting, print_speeds

SIDE: dict[str, Any] = {
    "decode_tok_s": (9, 10, 11), "share_of_serial": (0.7, 0.8, 0.9), "share_of_resident": (0.4, 0.5, 0.6),
    "ms_per_token": dict.fromkeys(PARTS, 1.5), "samples_ms": {"streaming": 2.5}, "missing_mb_per_token": 3.0,
    "read_mb_per_token": 4.0, "reads_per_token": 5.0, "passes_per_token": None, "hit_rate": 0.75,
    "cpu_ms_per_token": 6.0,
}  # fmt: skip
ROW = {"cached": 0.25, "window": "all", "mode": "streamed", "ratio": (1, 2, 3), "io_gbps": (1, 2, 3), "this": SIDE}


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    row = ROW | {"other": SIDE | {"samples_ms": {"mlx eval": 7.5}}}
    print_speeds({"this": "a", "other": "b", "routing": "forced", "rounds": 3, "rows": [row]})
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last[:8] == ["25.0%", "all", "10.0", "(9.0..11.0)", "10.0", "(9.0..11.0)", "2.00", "(1.00..3.00)"]
    print_setting(row)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["token", "1.50", "1.50"] in lines and ["passes", "-", "-"] in lines
    assert ["sampled:", "mlx", "eval", "7.50", "0.00"] in lines and ["sampled:", "streaming", "0.00", "2.50"] in lines


def test_books_are_shown_only_if_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    print_bookkeeping([])
    assert not capsys.readouterr().out
    print_bookkeeping([{"misses": 2, "other_us": (1, 2, 3), "this_us": (4, 5, 6), "ratio": (2, 2.5, 3)}])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.split() == ["2", "2.0", "(1.0..3.0)", "5.0", "(4.0..6.0)", "2.50", "(2.00..3.00)"]
