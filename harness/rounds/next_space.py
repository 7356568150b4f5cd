"""Rounds that learn: what the points say becomes the next search space, as a stated hypothesis, and the round is judged.

reading = findings_of(df, space, objectives)              what is known, or nothing where chance could say the same
changes = next_space(reading, space, legal)        at most MOST changes, each with its evidence in one sentence
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

MOST = 4  # changes a round
MOST_DROPPED = 2  # of them


def next_space(reading: Findings, space: Space, legal: Legal) -> list[Change]:
    """The changes that `reading` speaks for, most important first; none without evidence: the space stays.

    legal: knob -> (lowest, highest) that the machine allows, e.g. {"cache_gb": (one_token_gb, limit_gb)}; the knobs' own
    limits hold besides. No knob is changed twice, and at least one is left to choose.
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
            with contextlib.suppress(ConfigError):  # at what is legal already, or the last knob that moves, or gone
                space, change = changed(space, raw, legal)
                changes.append(change)
    return changes


def _wider(entry: Entry, side: str, space: Space, legal: Legal) -> dict[str, Any]:
    """Twice as far at `side`, or the next value of the list; less, if only that is legal. Empty if nothing is."""

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
    for _ in range(30):  # halves the way to what is refused; ends at the wanted one if that is legal
        value = math.trunc(wanted) if entry.type == "int" else float(f"{wanted:.4g}")
        if value == inside or is_legal({side: value}):
            return {side: value} if value != bound else {}
        wanted = (inside + wanted) / 2
    return {}


def _beyond(values: Sequence[Any]) -> list[Any]:
    """What may follow the last of `values`: as far again by factor, or by difference, or the nearest steps of one."""
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) < 2 or numbers[-1] != values[-1]:
        return []
    before, last = numbers[-2:]
    guesses = [last * last / before] if before else []
    guesses += [last + (last - before), last + (1 if last > before else -1)]
    return [int(g) if float(g).is_integer() else g for g in guesses if g not in values]


def _narrower(entry: Entry, side: str) -> dict[str, Any]:
    """The two thirds of the range, or of the list, away from `side`."""
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
