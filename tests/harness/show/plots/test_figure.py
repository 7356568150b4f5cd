"""Figures: equal rows give equal files, without a date."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from synthetic import FIVE

from harness.show.plots.front_plot import plot_front
from harness.show.plots.session_plot import plot_session


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        df = FIVE.assign(started_at=pd.date_range("2026-01-01", periods=5, freq="min", tz="UTC"), wall_s=9.0)
        plot_front(df, tmp_path / name / "front.png")
        plot_session(df, tmp_path / name / "session.png")
    for kind in ("front.png", "front.svg", "session.png", "session.svg"):
        assert (tmp_path / "a" / kind).read_bytes() == (tmp_path / "b" / kind).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["front.png", "front.svg", "session.png", "session.svg"]
    assert b"<dc:date>" not in (tmp_path / "a" / "front.svg").read_bytes()
