"""The table of bench decode: one line per setting, with `-` for figures that do not exist."""

from __future__ import annotations

import pytest

from engine.bench.decoding.decode_table import print_table


def test_a_line_per_setting(capsys: pytest.CaptureFixture[str]) -> None:
    common = {"average_bits": 4.0, "decode_tok_s": (9.0, 10.0, 11.0)}
    none = {"share_of_resident": None, "share_of_serial": None, "share_of_overlapped": None, "hit_rate": None}
    shares = dict.fromkeys(("share_of_resident", "share_of_serial", "share_of_overlapped"), (0.4, 0.5, 0.6))
    rows = [
        {**common, **none, "cached": None, "window": "-", "passes_per_token": None},
        {**common, **shares, "cached": 0.25, "window": "all", "hit_rate": 0.75, "passes_per_token": 1.5},
    ]
    routing = "forced from a trace"
    print_table({"mode": "test", "routing": routing, "io_gbps": (1.0, 2.0, 3.0), "foresight": [0.6, 0.8], "rows": rows})
    out = capsys.readouterr().out
    assert "recall of rejected passes limited to 0.60, 0.80" in out and "plain reads 2.00 GB/s (1.00 .. 3.00)" in out
    resident, streamed = out.splitlines()[-2:]
    assert resident.split() == ["resident", "4", "-", "10.0", "-", "-", "-", "-", "-"]
    assert streamed.split() == ["25.0%", "4", "all", "10.0", "0.50", "(0.40..0.60)", "0.50", "(0.40..0.60)", "0.50", "0.750",
                                "1.50"]  # fmt: skip
