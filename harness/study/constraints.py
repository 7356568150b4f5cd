"""Constraints and objectives: `peak_memory_gb <= 80`, `perplexity <= 1.02 * reference`, `json_valid >= 0.95`.

A sampler gets each constraint as its excess: the distance of a figure beyond its bound, as a share of the bound; above 0 the
constraint is violated. No constraint is added to an objective as a penalty.
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
    """An upper or lower bound on a metric: a number, or a multiple of the reference's figure."""

    text: str
    metric: str
    upper: bool  # an upper bound; False: a lower bound
    number: float  # the bound, or the factor of a relative bound
    relative: bool  # to the reference's figure

    def bound(self, reference: Mapping[str, Any] | None) -> float | None:
        """The bound; None if it is relative and the reference's figure is unknown."""
        if not self.relative:
            return self.number
        figure = None if reference is None else reference.get(self.metric)
        return None if figure is None else self.number * figure

    def excess(self, value: float | None, reference: Mapping[str, Any] | None) -> float | None:
        """The distance of `value` beyond the bound, as a share of the bound (of 1 if the bound is 0). None if unknown."""
        bound = self.bound(reference)
        if bound is None or value is None or not math.isfinite(value):
            return None
        return (value - bound if self.upper else bound - value) / (abs(bound) or 1.0)


def parse(text: str) -> Constraint:
    """Read a constraint. Raises `ConfigError` for another form or a metric that no trial measures."""
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
    """The study's constraints. Raises `ConfigError` for unreadable, unmeasured or contradicting ones.

    json_prompts: the file of the JSON prompts, without which json_valid is not measured.
    """
    found = tuple(parse(text) for text in texts)
    for c in found:
        if c.metric == "json_valid" and json_prompts is None:
            raise ConfigError(
                f"constraint '{c.text}': json_valid is not measured without prompts; set quality.json_prompts=FILE"
            )
    for metric in {c.metric for c in found}:
        upper = [c for c in found if c.metric == metric and c.upper and not c.relative]
        lower = [c for c in found if c.metric == metric and not c.upper and not c.relative]
        if upper and lower and min(c.number for c in upper) < max(c.number for c in lower):
            raise ConfigError(f"constraints '{upper[0].text}' and '{lower[0].text}' cannot both hold; remove one")
    return found


def objectives_from_config(names: Sequence[str]) -> dict[str, Direction]:
    """The study's objectives. Raises `ConfigError` unless they are two or three different metrics."""
    for name in names:
        if name not in METRICS:
            raise ConfigError(f"objectives: {name} is not an objective; {did_you_mean(str(name), list(METRICS))}")
    if len(set(names)) != len(names) or not 2 <= len(names) <= 3:
        raise ConfigError(f"objectives=[{','.join(names)}] has {len(names)} entries; give two or three different metrics")
    return {name: METRICS[name] for name in names}


def checked(
    constraints: Sequence[Constraint], row: Mapping[str, Any], reference: Mapping[str, Any] | None
) -> tuple[bool | None, str | None]:
    """`check_constraints` of a row. Where scoring ended early, a constraint holds or is violated only if it is at both ends
    of the perplexity's interval."""
    if row["scoring_stopped"] is None:
        return check_constraints(constraints, row, reference)
    ends = [{**row, "perplexity": row[f"perplexity_{end}"]} for end in ("at_least", "at_most")]
    found = [check_constraints(constraints, end, reference) for end in ends]
    decided = [
        [(e := c.excess(end["perplexity"], reference)) is not None and e > 0 for end in ends]
        for c in constraints
        if c.metric == "perplexity"
    ]
    if any(one != other for one, other in decided):
        others = [c for c in constraints if c.metric != "perplexity"]
        feasible, violated = check_constraints(others, row, reference)
        return feasible and None, violated
    return found[0]


def check_constraints(
    constraints: Sequence[Constraint], figures: Mapping[str, Any], reference: Mapping[str, Any] | None
) -> tuple[bool | None, str | None]:
    """Whether measured figures satisfy all constraints, and the violated ones as text.

    (None, None) if no constraint is violated, but one cannot be checked: its figure or its reference is missing.
    """
    excess = {c: c.excess(figures.get(c.metric), reference) for c in constraints}
    violated = [f"{c.text} ({figures[c.metric]:.4g})" for c, e in excess.items() if e is not None and e > 0]
    if violated:
        return False, "; ".join(violated)
    return (None if None in excess.values() else True), None
