"""Plot: tokens a second over the cache, with 80 % intervals, a line for each width."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

from harness.show.plots.figure import BLUE, FAINT, GREY, INK, RED, STYLE, save

from .forecast import Forecast

COLOURS = (BLUE, RED, GREY, INK, FAINT)


def plot(found: Forecast, path: Path) -> None:
    """Save `path` as PNG, and an SVG beside it."""
    plain = FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "1235" else "")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.5, 4.5))
        for colour, bits in zip(COLOURS, dict.fromkeys(row.bits for row in found.rows), strict=False):
            rows = sorted((row for row in found.rows if row.bits == bits), key=lambda row: row.cache_gb)
            sizes = [row.cache_gb for row in rows]
            label = f"{bits} bits" + ("" if rows[0].own else ", packed")
            axes.plot(sizes, [row.tok_s.middle for row in rows], "o-", color=colour, label=label, markersize=4)
            axes.fill_between(
                sizes, [row.tok_s.low for row in rows], [row.tok_s.high for row in rows], color=colour, alpha=0.12, lw=0
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(plain)
            axis.set_minor_formatter(plain)
        axes.set_xlabel("experts cached, GB")
        axes.set_ylabel("tokens a second, forecast with 80 % interval")
        axes.set_title(f"{found.model.title} on {found.machine.device.name}", loc="left")
        axes.legend(frameon=False)
        save(figure, path)
