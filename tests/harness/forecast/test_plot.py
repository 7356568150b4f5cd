"""Tests of the plot."""

from __future__ import annotations

from pathlib import Path

from harness.forecast.plot import plot
from tests.harness.forecast.test_forecast import made


def test_a_line_for_each_width(tmp_path: Path) -> None:
    plot(made("m2max_96gb"), tmp_path / "forecast.png")
    text = (tmp_path / "forecast.svg").read_text()
    assert (tmp_path / "forecast.png").stat().st_size > 10_000 and text.count("PolyCollection") >= 3
