"""Text: numbers, settings, times and axis labels, in one form for tables, lines and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine import Knobs
from engine.effective import effective
from harness.results.metrics import METRICS, SPEEDS

RESIDENT = "everything resident"


def number(value: Any, digits: int = 3) -> str:
    """A figure or a knob's value in at most `digits` significant digits; `-` for a missing one."""
    if value is None or value != value:
        return "-"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"
    return str(value)


def setting(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """`name=value` for those of the given knobs that have an effect in the row."""
    active = effective({n: (None if row[n] != row[n] else row[n]) for n in Knobs.names()})
    return " ".join(f"{n}={'unset' if active[n] is None else number(active[n], 4)}" for n in names if n in active)


def with_interval(row: Mapping[str, Any], metric: str) -> str:
    """A speed with half its 95 % interval, `45.2 ±1.3`; any other metric alone, as it does not vary between runs."""
    value, low, high = (float(row[f"{metric}{end}"]) for end in ("", "_low", "_high"))
    half = (high - low) / 2
    if metric not in SPEEDS or not half > 0:
        return number(value, 4)
    decimals = max(0, len(number(value, 3).partition(".")[2]))
    return f"{value:.{decimals}f} ±{half:.{decimals}f}"


def axis(metric: str) -> str:
    """The axis label of a metric: its column and its direction."""
    return f"{metric}   ({'higher' if METRICS[metric] == 'maximize' else 'lower'} is better)"


def clock(seconds: float) -> str:
    """h:mm:ss, or m:ss below an hour."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def duration(seconds: float) -> str:
    """A duration in its largest unit: `2.1 h`, `4.6 min`, `29 s`."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
