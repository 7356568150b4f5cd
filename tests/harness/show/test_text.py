"""Text: one form for numbers, settings, times and axis labels."""

from __future__ import annotations

import pytest
from synthetic import row

from harness.results.metrics import METRICS
from harness.show.text import axis, clock, number, setting, with_interval


def test_numbers_are_short() -> None:
    assert [number(v) for v in (None, float("nan"), 0.012345, 12.345, 123456.0, 7, "x")] == [
        "-", "-", "0.0123", "12.3", "123456", "7", "x",
    ]  # fmt: skip


def test_a_setting_names_knobs_with_an_effect() -> None:
    found = row(1, {"cache_gb": 0.0123456, "prefetch": "off", "read_threads": 4}, (1, 1, 1))
    assert setting(found, ["cache_gb", "read_threads", "prefetch_depth"]) == "cache_gb=0.01235 read_threads=4"
    assert setting(row(1, {"cache_gb": 4.0}, (1, 1, 1)), ["expert_bits"]) == "expert_bits=unset"


@pytest.mark.parametrize(
    ("metric", "low", "high", "text"),
    [
        ("decode_tok_s", 44.0, 46.4, "45.2 ±1.2"),
        ("decode_tok_s", 45.2, 45.2, "45.2"),
        ("peak_memory_gb", 40.0, 50.0, "45.2"),
    ],
)
def test_only_speeds_have_an_interval(metric: str, low: float, high: float, text: str) -> None:
    assert with_interval({metric: 45.2, f"{metric}_low": low, f"{metric}_high": high}, metric) == text


def test_times_and_axes() -> None:
    assert [clock(s) for s in (0, 61.9, 3600, 86400 + 62)] == ["0:00", "1:01", "1:00:00", "24:01:02"]
    assert axis("decode_tok_s") == "decode_tok_s   (higher is better)"
    assert all(axis(m).startswith(m) and axis(m).endswith("is better)") for m in METRICS)
