"""Tests of the table of `bench prefill`: a row per prompt, cached share and chunk, and dashes for the resident model."""

from __future__ import annotations

from typing import Any

import pytest

from engine.bench.decoding.prefill_table import print_table

ROW: dict[str, Any] = {
    "prompt": 2048, "cached": 0.25, "chunk": 512, "ttft_s": (1, 2, 3), "prefill_tok_s": (683, 1024, 2048),
    "speed_over_first_chunk": (1, 1, 1), "read_gb": 1.25, "must_read_gb": 1.0, "pass_gb": 0.5,
    "share_of_serial": (0.7, 0.8, 0.9), "share_of_overlapped": (0.6, 0.7, 0.8), "share_of_resident": (0.4, 0.5, 0.6),
}  # fmt: skip
RESIDENT = ROW | {"cached": None, "share_of_serial": None, "share_of_overlapped": None}


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    result = {
        "mode": "streamed",
        "routing": "the model's own",
        "io_gbps": (1, 2, 3),
        "auto_chunk": 2048,
        "auto_reason": "why",
    }
    print_table(result | {"rows": [RESIDENT, ROW]})
    out = capsys.readouterr().out
    assert "prefill_chunk=auto is 2048 tokens: why" in out
    *_, resident, streamed = out.splitlines()
    same = ["512", "2", "(1..3)", "1024", "1.00", "1.25", "1", "0.5"]
    assert resident.split() == ["2048", "resident", *same, "-", "-", "0.50"]
    assert streamed.split() == ["2048", "25.0%", *same, "0.80", "0.70", "0.50"]
