"""Bits: average bits against perplexity, and how the recommended settings divide the experts' weights among widths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from engine.knobs import HOT_SHARE
from harness.compare.sides import Side
from harness.results.metrics import QUALITY
from harness.show.text import axis

from .panel import Look, Panel, Picture, Series, look
from .planes import hover, title_of

SHADES = {2: "#fde0c5", 3: "#facba6", 4: "#f8b58b", 5: "#f5a374", 6: "#eb8f6f", 8: "#d99aa7", 16: "#a9b8cf", 32: "#a9b8cf"}
SAVED = "#c9cdd2"  # a saved plan, whose widths are in its file


def bits(sides: Sequence[Side], quality: str = "perplexity") -> Picture:
    """A panel of all measured settings by average bits, and one of the recommended settings as shares of widths."""
    if quality not in QUALITY:
        raise ValueError(f"{quality} is no figure of quality; give one of {', '.join(QUALITY)}")
    clouds, bars, rows = [], dict[str, list[tuple[int, float, float, str]]](), list[str]()
    for i, side in enumerate(sides):
        average, every = average_bits(side), side.measured
        x = np.array([average.get(int(t), np.nan) for t in every.index])
        keep = ~np.isnan(x) & every[quality].notna().to_numpy()
        some = every[keep]
        points = [point for _, point in some.iterrows()]
        clouds.append(Series(
            "points", title_of(side), look(i), x[keep], some[quality].to_numpy(float), filled=False, legend=True,
            text=tuple(f"{hover(side, p)}<br>{b:.3g} bits on average" for b, p in zip(x[keep], points, strict=True)),
        ))  # fmt: skip
        for trial, names in _chosen(side):
            rows.append(f"{side.letter}: {names} ({trial})")
            left = 0.0
            for width, share in shares(every.loc[trial], stored_bits(side), average.get(trial)):
                bars.setdefault(width, []).append((len(rows) - 1, left, left + share, width))
                left += share
    series = tuple(
        Series("bars", width, Look(_shade(width), "square", "solid"),
               np.array([b[1] for b in some]), np.array([b[0] for b in some], float), x2=np.array([b[2] for b in some]),
               label=tuple(b[3] for b in some), text=tuple(f"{b[2] - b[1]:.0%} at {b[3]}" for b in some))
        for width, some in bars.items()
    )  # fmt: skip
    letters = ", ".join(f"{side.letter}: {side.name}" for side in sides)
    panels = (
        Panel("quality by average bits", "average bits of an expert's weight", axis(quality), tuple(clouds)),
        Panel("bits of the recommended settings", "share of the experts' weights", series=series, rows=tuple(rows),
              x_range=(0.0, 1.0)),
    )  # fmt: skip
    return Picture("Bit plans", panels, f"numbers in the bars: bits of a weight; {letters}", max(4.2, 2.2 + 0.3 * len(rows)))


def average_bits(side: Side) -> dict[int, float]:
    """The average bits of each trial whose run has them."""
    known = side.df[side.df["average_bits"].notna()].drop_duplicates("trial")
    return {int(t): float(b) for t, b in zip(known["trial"], known["average_bits"], strict=True)}


def stored_bits(side: Side) -> float | None:
    """The bits of the checkpoint's experts: those of a run without lossy widths."""
    df = side.df
    plain = df[df["expert_bits"].isna() & df["cold_bits"].isna() & df["bits_plan"].isna() & df["average_bits"].notna()]
    return float(plain["average_bits"].iloc[0]) if len(plain) else None


def shares(point: Mapping[str, Any], stored: float | None, average: float | None) -> list[tuple[str, float]]:
    """(width, share of the weights) of a setting, the wider width first; a saved plan has its average alone."""
    bits_plan, hot, cold, share = (point[n] for n in ("bits_plan", "expert_bits", "cold_bits", "hot_share"))
    if isinstance(bits_plan, str):
        return [("saved plan" if average is None else f"saved plan, {average:.3g} on average", 1.0)]
    wide = stored if hot is None or hot != hot else float(hot)
    name = "as stored" if wide is None else f"{wide:g}"
    if cold is None or cold != cold:
        return [(name, 1.0)]
    part = HOT_SHARE if share is None or share != share else float(share)
    return [(name, part), (f"{float(cold):g}", 1 - part)]


def _chosen(side: Side) -> Iterator[tuple[int, str]]:
    """The trials of the recommended settings, each with the names of its rules."""
    names: dict[int, list[str]] = {}
    for name, point, choice in side.named:
        if point is not None and choice is not None:
            names.setdefault(int(point["trial"]), []).append(name)
    for trial, some in names.items():
        yield trial, ", ".join(some)


def _shade(width: str) -> str:
    if not width.replace(".", "").isdigit():
        return SAVED
    return SHADES[min(SHADES, key=lambda known: abs(known - float(width)))]
