"""Session plot: speed and status of all runs over time, with the sentinel's speed and the suspect runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from harness.analysis.estimates import suspect_runs
from harness.analysis.runs.timeline import since_first
from harness.results.columns import NOT_RUN, STATUSES

from .figure import FAINT, INK, RED, STYLE, save

if TYPE_CHECKING:
    import pandas as pd


def plot_session(df: pd.DataFrame, path: Path) -> Path | None:
    """Draw all runs into a PNG and an SVG; returns the PNG's path, or None if no row has a start time."""
    if df["started_at"].isna().all():
        return None
    with plt.rc_context(STYLE):
        save(draw_session(df), path)
    return path


def draw_session(df: pd.DataFrame) -> Figure:
    """Above, the speed of each run with suspect runs shaded; below, a tick per run in the line of its status."""
    rows, seconds = since_first(df)
    unit, unit_s = ("hours", 3600) if seconds.max() > 3600 else ("minutes", 60)
    time = seconds / unit_s
    suspect = suspect_runs(rows)
    sentinel = (rows["origin"] == "sentinel") & (rows["status"] == "ok")
    if sentinel.any():  # the first run of its trial is its baseline
        sentinel |= rows["trial"].isin(rows.loc[sentinel, "trial"]) & (rows["status"] == "ok")
    figure, (speed, status) = plt.subplots(
        2, sharex=True, figsize=(9, 4.5), dpi=160, layout="constrained", height_ratios=[3, 2]
    )
    for start, wall in zip(time[suspect], rows.loc[suspect, "wall_s"].fillna(0), strict=True):
        for ax in (speed, status):
            ax.axvspan(start, start + max(wall / unit_s, 0.003 * time.max()), color=RED, alpha=0.12, linewidth=0)
    speed.scatter(time[~sentinel], rows.loc[~sentinel, "decode_tok_s"], s=10, color=FAINT, linewidths=0, label="other runs")
    speed.plot(time[sentinel], rows.loc[sentinel, "decode_tok_s"], marker="o", markersize=4, color=INK, linewidth=1,
               label="sentinel (the default, repeated)")  # fmt: skip
    if suspect.any():
        speed.plot([], [], color=RED, alpha=0.3, linewidth=6, label="suspect runs")
    speed.set_ylim(bottom=0)
    speed.set_ylabel("decode_tok_s")
    speed.legend(loc="lower right", frameon=False, fontsize=8, ncols=3)
    speed.set_title(f"{rows['study'].iloc[0]}: runs over time", loc="left", fontsize=12, fontweight="bold")
    kinds = [s for s in STATUSES if (rows["status"] == s).any()]
    for i, kind in enumerate(kinds):
        of = rows["status"] == kind
        color = INK if kind == "ok" else FAINT if kind in (*NOT_RUN, "stopped") else RED
        status.scatter(time[of], np.full(of.sum(), i), s=12, marker="|", color=color)
    status.set_yticks(range(len(kinds)), [f"{k} ({(rows['status'] == k).sum()})" for k in kinds])
    status.set_ylim(-0.6, len(kinds) - 0.4)
    status.set_ylabel("status (runs)")
    status.set_xlabel(f"{unit} since the first run")
    return figure
