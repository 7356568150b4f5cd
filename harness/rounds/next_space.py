"""Next space: findings of a round become at most four changes of the search space, each with its evidence.

reading = findings_of(df, space, objectives)    findings beyond chance
changes = next_space(reading, space, legal)     the hypothesis of the next round
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from harness import ConfigError
from harness.analysis.findings import TAIL, Findings
from harness.space.changes import Change, Legal, changed
from harness.space.entry import Entry
from harness.space.space import Space

MOST = 4  # changes per round
MOST_DROPPED = 2  # dropped knobs among them


def next_space(reading: Findings, space: Space, legal: Legal) -> list[Change]:
    """The changes that the findings support, most important first; empty without evidence.

    legal: knob -> (lowest, highest) that the machine allows, e.g. {"cache_gb": (one_token_gb, limit_gb)}, in addition to
    the knobs' own limits. Each knob changes at most once, and at least one knob keeps moving.
    """
    wanted: list[dict[str, Any]] = []
    for f in reading.bounds:
        farther = _wider(space.entry(f.knob), f.side, space, legal)
        wanted.append({"kind": "widen", "knob": f.knob, "evidence": f.evidence, **farther})
    wanted += [{"kind": "fix", "knob": f.knob, "value": f.value, "evidence": f.evidence} for f in reading.clear]
    for f in reading.empty:
        wanted.append({"kind": "narrow", "knob": f.knob, "evidence": f.evidence, **_narrower(space.entry(f.knob), f.side)})
    for name in reading.never[:MOST_DROPPED]:
        found, chance = reading.importance, reading.importance.chance[name]
        shares = ", ".join(f"{v:.1%} of {o} (chance {chance[o]:.1%})" for o, v in found.share[name].items())
        value = space.entry(name).nearest(reading.best[name])
        wanted.append({"kind": "drop", "knob": name, "value": value, "evidence": f"{name} explains {shares}"})
    changes: list[Change] = []
    for raw in wanted:
        if len(changes) < MOST and raw["knob"] not in {c.knob for c in changes}:
            with contextlib.suppress(ConfigError):  # already at its legal limit, the last moving knob, or inactive
                space, change = changed(space, raw, legal)
                changes.append(change)
    return changes


def _wider(entry: Entry, side: str, space: Space, legal: Legal) -> dict[str, Any]:
    """The bound at `side` doubled, or the next value of the list; the farthest legal one. Empty if none is legal."""

    def is_legal(now: dict[str, Any]) -> bool:
        try:
            changed(space, {"kind": "widen", "knob": entry.name, **now}, legal)
        except ConfigError:
            return False
        return True

    if entry.values:
        for value in _beyond(entry.values if side == "high" else entry.values[::-1]):
            now = {"values": (*entry.values, value) if side == "high" else (value, *entry.values)}
            if is_legal(now):
                return now
        return {}
    bound, span = (entry.high, entry.high - entry.low) if side == "high" else (entry.low, entry.low - entry.high)
    factor = 2 if side == "high" else 0.5
    wanted = bound * factor if entry.low > 0 else bound + span / 2
    least, most = legal.get(entry.name, (-math.inf, math.inf))
    wanted = min(max(wanted, least), most)
    inside = bound
    for _ in range(30):  # bisect between the old bound and a rejected one; a legal wanted bound ends it at once
        value = math.trunc(wanted) if entry.type == "int" else float(f"{wanted:.4g}")
        if value == inside or is_legal({side: value}):
            return {side: value} if value != bound else {}
        wanted = (inside + wanted) / 2
    return {}


def _beyond(values: Sequence[Any]) -> list[Any]:
    """Candidates for the value after the last: by the last ratio, by the last difference, or one step away."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or numbers[-1] != values[-1]:
        return []
    before, last = numbers[-2:]
    guesses = [last * last / before] if before else []
    guesses += [last + (last - before), last + (1 if last > before else -1)]
    return [int(g) if float(g).is_integer() else g for g in guesses if g not in values]


def _narrower(entry: Entry, side: str) -> dict[str, Any]:
    """The two thirds of the range, or of the list, opposite to `side`."""
    if entry.values:
        last = len(entry.values) - 1
        kept = [v for i, v in enumerate(entry.values) if (i / last >= TAIL if side == "low" else i / last <= 1 - TAIL)]
        return {"values": tuple(kept)}
    share = TAIL if side == "low" else 1 - TAIL
    ratio = entry.high / entry.low if entry.log else 1.0
    cut = entry.low * ratio**share if entry.log else entry.low + (entry.high - entry.low) * share
    if entry.type == "int":
        return {side: math.ceil(cut) if side == "low" else math.floor(cut)}
    return {side: float(f"{cut:.4g}")}
