"""Settings: the recommended settings of two studies side by side, and the settings that both have measured.

The ratio of a figure is the other study's divided by the base's. Its 95 % interval follows from the noise between the runs
within each study (Welch's approximation of the degrees of freedom). It covers neither the luck of a search, which may find
another setting, nor a change between two sessions. For these there are controls: the default, the reference, and all
settings that both studies have measured, whose mean ratio shows what machine, versions or disk have changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import Knobs
from engine.effective import effective
from harness.decisions.reuse import SAME_NLL
from harness.numerics.student_t import t_quantile
from harness.results.metrics import METRICS, QUALITY
from harness.show.text import number, setting
from harness.space.space import canonical

from .identity import Identity
from .sides import Side

if TYPE_CHECKING:
    import pandas as pd

SAME, NOISE, BETTER, WORSE = "same", "noise", "better", "worse"
EXACT = 1e-9  # logarithms that differ by less are equal
LEAST_PAIRS = 2  # settings in common for a mean ratio
SIMULATED = "ssd_gbps"  # belongs to the disk; settings that differ only in it are one setting


@dataclass(frozen=True)
class Ratio:
    """A figure of the other study divided by the base's, as a logarithm with its standard error.

    `tolerance`: logarithms within it are equal apart from rounding. `limits(p)` gives the ends of an interval.
    """

    metric: str
    log: float
    se: float
    degrees: float
    tolerance: float = 0.0

    @property
    def middle(self) -> float:
        return math.exp(self.log)

    def limits(self, p: float = 0.975) -> tuple[float, float]:
        """The ends of the interval whose one-sided probability is `p`."""
        half = (t_quantile(p, self.degrees) * self.se if self.se > 0 else 0.0) + self.tolerance
        return math.exp(self.log - half), math.exp(self.log + half)

    @property
    def gain(self) -> float:
        """The logarithm with its sign so that more is better."""
        return self.log if METRICS[self.metric] == "maximize" else -self.log

    @property
    def verdict(self) -> str:
        """`same`, `noise` (the interval contains 1), `better` or `worse`."""
        if abs(self.log) <= EXACT:
            return SAME
        low, high = self.limits()
        if low <= 1 <= high:
            return NOISE
        return BETTER if self.gain > 0 else WORSE


@dataclass(frozen=True)
class Pairing:
    """One named setting of both studies; a point is None where a study has none. `changed`: the knobs that differ."""

    name: str
    rule: str  # empty for the default and the reference
    base: pd.Series | None
    other: pd.Series | None
    base_confirmed: bool | None
    other_confirmed: bool | None
    ratios: dict[str, Ratio]
    changed: str

    @property
    def same_setting(self) -> bool:
        return self.base is not None and self.other is not None and not self.changed


@dataclass(frozen=True)
class Shared:
    """The settings that both studies have measured: (trial of base, trial of other, ratios), and their mean ratios."""

    pairs: tuple[tuple[int, int, dict[str, Ratio]], ...]
    means: dict[str, Ratio]


def pairings(base: Side, other: Side, known: Identity) -> list[Pairing]:
    """The recommended settings, the default and the reference of two studies."""
    theirs = {name: (point, choice) for name, point, choice in other.named}
    found = []
    for name, point, choice in base.named:
        second, its = theirs.get(name, (None, None))
        whole = point is not None and second is not None
        found.append(
            Pairing(
                name, choice.rule if choice else "", point, second,
                choice.confirmed if choice else None, its.confirmed if its else None,
                ratios(base, other, point, second, known) if whole else {},
                changed(point, second) if point is not None and second is not None and name != "reference" else "",
            )
        )  # fmt: skip
    return found


def ratios(base: Side, other: Side, point: Any, second: Any, known: Identity) -> dict[str, Ratio]:
    """The ratio of every metric that both points have."""
    found = {}
    for metric in (name for name in base.metrics if name in other.metrics):
        a, b = float(point[metric]), float(second[metric])
        if a > 0 and b > 0:
            sides = ((point, base), (second, other))
            parts = [(_se(p, metric), float(side.noise.loc[metric, "degrees"])) for p, side in sides]
            tolerance = SAME_NLL if metric in QUALITY and not known.same_rounding else 0.0
            found[metric] = Ratio(metric, math.log(b / a), *_combined(parts), tolerance)
    return found


def shared(base: Side, other: Side, known: Identity) -> Shared:
    """The settings in both studies, fastest first, and the geometric mean of their ratios.

    Noise of the mean is the larger of two estimates: from the noise of the runs, and from the scatter of the ratios.
    """
    mine, theirs = _by_setting(base), _by_setting(other)
    both = [key for key in mine if key in theirs]
    pairs = tuple(
        (int(mine[key]["trial"]), int(theirs[key]["trial"]), ratios(base, other, mine[key], theirs[key], known))
        for key in both
    )
    means = {}
    for metric in base.metrics:
        some = [r[metric] for _, _, r in pairs if metric in r]
        if len(some) >= LEAST_PAIRS:
            means[metric] = _mean(metric, some)
    return Shared(pairs, means)


def changed(point: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """`cache_gb 0.01 -> 0.02, read_threads 4 -> 8` for the knobs that differ; empty for one setting."""
    if _key(point) == _key(other):
        return ""
    names = [n for n in Knobs.names() if n != SIMULATED]
    texts = [{n: setting(p, [n]).partition("=")[2] or "-" for n in names} for p in (point, other)]
    parts = [f"{n} {texts[0][n]} -> {texts[1][n]}" for n in names if texts[0][n] != texts[1][n]]
    return ", ".join(parts) or "removed knobs differ"


def _mean(metric: str, some: list[Ratio]) -> Ratio:
    logs, n = np.array([r.log for r in some]), len(some)
    by_runs = math.sqrt(sum(r.se**2 for r in some)) / n
    by_scatter = float(logs.std(ddof=1)) / math.sqrt(n)
    se, degrees = max((by_runs, min(r.degrees for r in some)), (by_scatter, n - 1.0))
    return Ratio(metric, float(logs.mean()), se, max(degrees, 1.0), max(r.tolerance for r in some))


def _combined(parts: list[tuple[float, float]]) -> tuple[float, float]:
    """Standard error and degrees of freedom of a difference (Welch, 1947)."""
    variance = sum(se**2 for se, _ in parts)
    if not variance > 0:
        return 0.0, min(degrees for _, degrees in parts)
    return math.sqrt(variance), variance**2 / sum(se**4 / degrees for se, degrees in parts)


def _se(point: Mapping[str, Any], metric: str) -> float:
    se = float(point[f"{metric}_rel_se"])
    return se if se == se else 0.0


def _by_setting(side: Side) -> dict[str, Any]:
    """The measured point of each setting, the one with the most runs if a setting has several trials; fastest first."""
    found: dict[str, Any] = {}
    first = side.objectives[0]
    every = side.measured.sort_values(first, ascending=METRICS[first] == "minimize", kind="stable")
    for _, point in every.iterrows():
        key = _key(point)
        if key not in found or point["runs"] > found[key]["runs"]:
            found[key] = point
    return found


def _key(point: Mapping[str, Any]) -> str:
    """Equal texts mean equal settings: the knobs in effect and the removed knobs, with numbers in 9 digits."""
    values = {n: None if point[n] != point[n] else point[n] for n in Knobs.names() if n != SIMULATED}
    live = {n: v.item() if hasattr(v, "item") else v for n, v in effective(values).items() if v is not None}
    live = {n: number(v, 9) if isinstance(v, float) else v for n, v in live.items()}
    gone = point["removed_knobs"]
    return canonical({**live, "removed_knobs": gone if isinstance(gone, str) else None})
