"""Constraints of a study: `peak_memory_gb <= 80`, `perplexity <= 1.02 * reference`, `json_valid >= 0.95`.

A sampler is given each as a number, above 0 where it is violated: how far the figure is beyond its bound, as a share of the
bound. They are never added to an objective as a penalty.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import did_you_mean
from harness import ConfigError
from harness.results.metrics import CONSTRAINABLE, METRICS, Direction

_FORM = re.compile(r"\s*(\w+)\s*(<=|>=)\s*(?:([-+.\deE]+)\s*(?:\*\s*(reference))?|(reference)(?:\s*\*\s*([-+.\deE]+))?)\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound on a figure: a number, or a multiple of the reference's figure."""

    text: str
    metric: str
    upper: bool  # the figure must not be above the bound; else not below it
    number: float
    relative: bool  # to the reference's

    def bound(self, reference: Mapping[str, Any] | None) -> float | None:
        """The bound; None as long as it needs a reference whose figure is not known."""
        if not self.relative:
            return self.number
        figure = None if reference is None else reference.get(self.metric)
        return None if figure is None else self.number * figure

    def excess(self, value: float | None, reference: Mapping[str, Any] | None) -> float | None:
        """How far `value` is beyond the bound, as a share of it (of 1 if it is 0); above 0: violated. None: not known."""
        bound = self.bound(reference)
        if bound is None or value is None or not math.isfinite(value):
            return None
        return (value - bound if self.upper else bound - value) / (abs(bound) or 1.0)


def parse(text: str) -> Constraint:
    """Read a constraint. Raises `ConfigError` for one that cannot be understood or whose metric no trial measures."""
    match = _FORM.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        metric, sign, number, relative, alone, factor = match.groups()
        value = float(number or factor or 1)
    except ValueError:
        raise ConfigError(
            f"constraint '{text}' cannot be read; write METRIC <= NUMBER, METRIC >= NUMBER or METRIC <= FACTOR * reference"
        ) from None
    if metric not in CONSTRAINABLE:
        raise ConfigError(f"constraint '{text}': {metric} is not measured; {did_you_mean(metric, list(CONSTRAINABLE))}")
    return Constraint(" ".join(text.split()), metric, sign == "<=", value, bool(relative or alone))


def constraints_from_config(texts: Sequence[str], json_prompts: str | None) -> tuple[Constraint, ...]:
    """The study's constraints, checked together. Raises `ConfigError`."""
    found = tuple(parse(text) for text in texts)
    for one in found:
        if one.metric == "json_valid" and json_prompts is None:
            raise ConfigError(
                f"constraint '{one.text}': json_valid is not measured without prompts; set quality.json_prompts=FILE"
            )
    for metric in {c.metric for c in found}:
        upper = [c for c in found if c.metric == metric and c.upper and not c.relative]
        lower = [c for c in found if c.metric == metric and not c.upper and not c.relative]
        if upper and lower and min(c.number for c in upper) < max(c.number for c in lower):
            raise ConfigError(f"constraints '{upper[0].text}' and '{lower[0].text}' cannot both hold; drop one")
    return found


def objectives_from_config(names: Sequence[str]) -> dict[str, Direction]:
    """The study's objectives. Raises `ConfigError` unless they are two or three different metrics."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"objectives: {name} is not an objective; {did_you_mean(str(name), list(METRICS))}")
    if len(set(names)) != len(names) or not 2 <= len(names) <= 3:
        raise ConfigError(f"objectives=[{','.join(names)}] are {len(names)}; give two or three different ones")
    return {name: METRICS[name] for name in names}


def judge_row(
    constraints: Sequence[Constraint], figures: Mapping[str, Any], reference: Mapping[str, Any] | None
) -> tuple[bool | None, str | None]:
    """Whether all constraints hold for measured figures, and the texts of those that do not. A figure that is missing
    or a reference that is not known yet leaves it open: (None, None) unless another is violated."""
    excess = {c: c.excess(figures.get(c.metric), reference) for c in constraints}
    broken = [f"{c.text} ({figures[c.metric]:.4g})" for c, e in excess.items() if e is not None and e > 0]
    if broken:
        return False, "; ".join(broken)
    return (None if None in excess.values() else True), None
