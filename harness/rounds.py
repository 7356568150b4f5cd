"""Rounds that learn: what the points say becomes the next search space, as a stated hypothesis, and the round is judged.

reading = read(df, space, objectives)              what is known, or nothing where chance could say the same
changes = next_space(reading, space, legal)        at most MOST changes, each with its evidence in one sentence
verdict(before, after, objectives)                 was the round worth it, beyond the noise?
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import ConfigError
from .changes import Change, Legal, changed
from .columns import Direction
from .front import volume as _volume
from .reading import TAIL, Reading, losses, on_front, trusted
from .space import Entry, Space

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 200  # of the bootstrap of a verdict
UNKNOWN = 0.1  # standard deviation of a speed between runs, as a share, while nothing was measured twice
SPEEDS = ("decode_tok_s", "prefill_tok_s", "ttft_ms")
MOST = 4  # changes a round
MOST_DROPPED = 2  # of them


@dataclass(frozen=True)
class Verdict:
    """Whether a round is kept: hypervolume of the front before and after, the gain's noise (one standard deviation)."""

    kept: bool
    before: float
    after: float
    noise: float
    evidence: str


def next_space(reading: Reading, space: Space, legal: Legal) -> list[Change]:
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
        chance = reading.chance[name]
        shares = ", ".join(f"{v:.1%} of {o} (chance {chance[o]:.1%})" for o, v in reading.importance[name].items())
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


def verdict(before: pd.DataFrame, after: pd.DataFrame, objectives: Mapping[str, Direction], seed: int = 0) -> Verdict:
    """Keep a round if its trials raised the front's hypervolume by more than twice the gain's noise, the bias taken off.

    before, after: the rows at the round's start and at its end (all of them). Both fronts are computed from what is known
    at the end, so that a run that measures an old trial again is no gain. A trial with fresh runs (`run` above 0) counts by
    those alone, for the first run is what it was chosen by; once any trial was confirmed, trials without do not count.
    The noise is a bootstrap: each trial's objectives are drawn anew, log-normally, with the spread between runs of one trial
    (pooled over all trials with several; of speeds `UNKNOWN` if there are none) or that of its speed's interval within the
    run, whichever is larger. More points reach higher by luck alone; by how much the draws gain more than the figures is
    that bias, and is taken off.
    """
    centre, spread = _estimates(after, objectives)
    known = centre.index.isin(trusted(before, objectives)["trial"])
    if not len(centre) or known.all():
        return Verdict(False, 0.0, 0.0, 0.0, "the round added no trial that counts")
    if not known.any():
        return Verdict(True, 0.0, 0.0, 0.0, "the first points of the study")
    values = losses(centre, objectives)
    worst = values[on_front(values)].max(0)
    corner = worst + 0.1 * np.abs(worst)

    def volumes(sample: np.ndarray) -> tuple[float, float]:
        inside = [part[(part < corner).all(1)] for part in (sample[known], sample)]
        low, high = (_volume(part[on_front(part)], corner) for part in inside)
        return low, high

    was, now = volumes(values)
    rng = np.random.default_rng(seed)
    drawn = (volumes(values * np.exp(spread * rng.standard_normal(values.shape))) for _ in range(DRAWS))
    gains = [high - low for low, high in drawn]
    noise = float(np.std(gains))
    gain = now - was - max(float(np.mean(gains)) - (now - was), 0.0)
    kept = gain > 0 and gain > 2 * noise
    what = f"hypervolume of the front {gain / was:+.1%}, noise {noise / was:.1%}" if was else f"hypervolume {gain:+.3g}"
    return Verdict(kept, was, now, noise, f"{what}: {'kept' if kept else 'discarded, for a gain must be twice its noise'}")


def _estimates(df: pd.DataFrame, objectives: Mapping[str, Direction]) -> tuple[pd.DataFrame, np.ndarray]:
    """Objectives of the trials that count, and the relative standard deviation of each: (trials, objectives) both."""
    rows = trusted(df, objectives).astype(dict.fromkeys(objectives, float))
    runs = rows["run"].fillna(0)
    fresh = rows[runs > 0] if (rows["origin"] == "confirm").any() else rows
    grouped = fresh.groupby("trial")[list(objectives)]
    centre, count = grouped.mean(), grouped.size().to_numpy(float)[:, None]
    logs = np.log(rows[list(objectives)].clip(lower=1e-300))
    several = rows.groupby("trial")["trial"].transform("size") > 1
    left = (logs - logs.groupby(rows["trial"]).transform("mean"))[several]
    freedom = several.sum() - rows["trial"][several].nunique()
    unknown = np.array([UNKNOWN if name in SPEEDS else 0.0 for name in objectives])
    between = np.sqrt((left**2).sum().to_numpy() / freedom) if freedom else unknown
    spread = np.tile(between, (len(centre), 1))
    if "decode_tok_s" in objectives:
        width = (fresh["decode_tok_s_high"] - fresh["decode_tok_s_low"]).astype(float) / 3.92 / fresh["decode_tok_s"]
        within = width.groupby(fresh["trial"]).mean().fillna(0).to_numpy()
        column = list(objectives).index("decode_tok_s")
        spread[:, column] = np.maximum(spread[:, column], within)
    return centre, spread / np.sqrt(count)
