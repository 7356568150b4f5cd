"""Regression: whether a later study is worse than the base by more than a limit, beyond noise.

A figure is a regression if both hold: its estimate is worse by more than the limit, and noise does not explain that it is
worse at all. The second is a one-sided test at 5 % for all figures of a metric together: with m of them, each has an error
of 0.05/m (Bonferroni), and never more than 2.5 %, so that a regression lies outside the 95 % interval too. Without a true
difference, at most about 5 comparisons in 100 therefore fail, whatever the noise.

Judged in speed, memory and perplexity, as far as they are comparable, is what both studies have measured at one setting: the
default, a recommended setting that is the same in both, and the mean over all settings in both. Where a rule selects another
setting in each study, only its aim is judged: the speed, or for `least_memory` the memory, and that only if both selections
are confirmed. More memory for more speed is a trade-off, and an unsure choice between two settings is luck. The reference is
not judged: it is no setting to use.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from harness import ResultsError
from harness.results.metrics import METRICS, SHORT

from .identity import Identity
from .settings import Pairing, Ratio, Shared
from .sides import Side, shared_speed

ERROR = 0.05  # of all figures of a metric together
MOST_LIMIT = 1.0
LEAST_MEMORY, MEMORY = "least_memory", "peak_memory_gb"
SAME_SETTINGS = "the settings in both"


@dataclass(frozen=True)
class Regression:
    """A figure that is worse by more than the limit; without a ratio, a rule that no setting meets any more."""

    study: str
    name: str
    metric: str
    ratio: Ratio | None = None

    def __str__(self) -> str:
        if self.ratio is None:
            return f"{self.study}: {self.name} is met by no setting any more"
        low, high = self.ratio.limits()
        loss = 1 - self.ratio.middle if METRICS[self.metric] == "maximize" else self.ratio.middle - 1
        return (
            f"{self.study}: {SHORT[self.metric]} of {self.name} is {100 * loss:.1f} % worse "
            f"({self.ratio.middle:.3g}x, {low:.3g} .. {high:.3g})"
        )


def share(text: str) -> float:
    """The limit `5%`, `5 %` or `0.05` as a share. Raises `ValueError` for anything outside 0 .. 100 %."""
    words = text.strip()
    percent = words.endswith("%")
    value = float(words.removesuffix("%")) / (100 if percent else 1)
    if not 0 <= value < MOST_LIMIT:
        raise ValueError(f"{text} is outside 0% .. 100%; give a limit such as 5% or 0.05")
    return value


def regressions(
    base: Side, other: Side, known: Identity, pairs: list[Pairing], both: Shared, limit: float
) -> list[Regression]:
    """The regressions of a study. Raises `ResultsError` if none of its figures can be judged."""
    judged: dict[str, list[tuple[str, Ratio]]] = {}
    gone = [
        Regression(other.name, p.name, "") for p in pairs
        if p.rule and p.base is not None and p.other is None and base.wishes == other.own_wishes
    ]  # fmt: skip
    seen: set[tuple[int, int]] = set()
    for p in pairs:
        if p.name == "reference" or p.base is None or p.other is None:
            continue
        trials = (int(p.base["trial"]), int(p.other["trial"]))
        if trials in seen:  # one setting may meet several rules; it counts once
            continue
        seen.add(trials)
        for metric in p.ratios if p.same_setting else _aim(p, shared_speed([base, other])):
            if metric in p.ratios:
                judged.setdefault(metric, []).append((p.name, p.ratios[metric]))
    for metric, ratio in both.means.items():
        judged.setdefault(metric, []).append((SAME_SETTINGS, ratio))
    judged = {metric: some for metric, some in judged.items() if metric not in known.incomparable}
    if not judged:
        reasons = "; ".join(dict.fromkeys(known.incomparable.values())) or "they have no setting and no metric in common"
        raise ResultsError(f"{other.name} cannot be judged against {base.name}: {reasons}")
    found = [
        Regression(other.name, name, metric, ratio)
        for metric, some in judged.items()
        for name, ratio in some
        if is_regression(ratio, limit, len(some))
    ]
    return found + gone


def _aim(p: Pairing, speed: str) -> tuple[str, ...]:
    """The metric that the rule of a recommendation optimises; none if the selections are too unsure to compare it."""
    if p.name != LEAST_MEMORY:
        return (speed,) if p.rule else ()
    return (MEMORY,) if p.base_confirmed and p.other_confirmed else ()


def is_regression(ratio: Ratio, limit: float, figures: int) -> bool:
    """Whether a ratio is worse than `limit` allows, and worse beyond noise among so many figures."""
    worse = 1 - limit if METRICS[ratio.metric] == "maximize" else 1 + limit
    if ratio.gain >= 0 or abs(ratio.log) <= abs(math.log(worse)):
        return False
    low, high = ratio.limits(max(0.975, 1 - ERROR / max(1, figures)))
    return high < 1 if METRICS[ratio.metric] == "maximize" else low > 1
