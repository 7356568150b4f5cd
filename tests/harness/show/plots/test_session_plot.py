"""Session plot: titled axes, a tick per run in the line of its status, suspect runs shaded, the sentinel as a line."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from synthetic import trials

from harness.show.plots.figure import STYLE
from harness.show.plots.session_plot import draw_session, plot_session


def rows() -> pd.DataFrame:
    """A default with two sentinel runs, a crash and a suspect run; one run a minute."""
    df = trials(*((10.0 + i, 1.0, 4.0) for i in range(6)), study="demo", wall_s=30.0)
    df["started_at"] = pd.date_range("2026-01-01", periods=6, freq="min", tz="UTC")
    df["origin"] = ["anchor", "sampler", "sentinel", "sampler", "sentinel", "sampler"]
    df["trial"] = [1, 2, 1, 3, 1, 4]
    df["run"] = [0, 0, 1, 0, 2, 0]
    df["status"] = ["ok", "ok", "ok", "crash", "ok", "ok"]
    df["suspect"] = [None] * 5 + ["load: others"]
    return df


def test_what_the_plot_shows() -> None:
    with plt.rc_context(STYLE):
        figure = draw_session(rows())
    speed, status = figure.axes
    assert (speed.get_title(loc="left"), speed.get_ylabel()) == ("demo: runs over time", "decode_tok_s")
    assert (status.get_xlabel(), status.get_ylabel()) == ("minutes since the first run", "status (runs)")
    assert [t.get_text() for t in status.get_yticklabels()] == ["ok (5)", "crash (1)"]
    legend = [t.get_text() for t in speed.get_legend().get_texts()]
    assert legend == ["other runs", "sentinel (the default, repeated)", "suspect runs"]
    sentinel = np.asarray(speed.lines[0].get_xydata())
    assert sentinel[:, 1].tolist() == [10.0, 12.0, 14.0]
    assert len(speed.patches) == len(status.patches) == 1
    plt.close(figure)


def test_rows_without_times_have_no_plot(tmp_path: Path) -> None:
    assert plot_session(rows().assign(started_at=pd.NaT), tmp_path / "session.png") is None
    assert not list(tmp_path.iterdir())
