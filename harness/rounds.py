"""Rounds that learn: what the points say becomes the next search space, as a stated hypothesis, and the round is judged.

reading = read(df, space, objectives)              what is known, or nothing where chance could say the same
changes = next_space(reading, space, legal)        at most MOST changes, each with its evidence in one sentence
space = applied(space, changes)
verdict(before, after, objectives)                 was the round worth it, beyond the noise?
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import Knobs
from engine.errors import did_you_mean

from . import ConfigError
from .columns import SPEEDS, Direction
from .front import volume as _volume
from .reading import TAIL, Reading, losses, on_front, shown, trusted
from .space import Entry, Space, space_from_config

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 200  # of the bootstrap of a verdict
UNKNOWN = 0.1  # standard deviation of a speed between runs, as a share, while nothing was measured twice
MOST = 4  # changes a round
MOST_DROPPED = 2  # of them
KINDS = ("widen", "narrow", "fix", "drop")
Legal = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Change:
    """One change of the space: `was` and `now` are (low, high) or the tuple of values; of fix and drop, `now` the value."""

    kind: str
    knob: str
    was: Any
    now: Any
    evidence: str

    def __str__(self) -> str:
        return f"{self.kind} {self.knob}: {shown(self.was)} -> {shown(self.now)}"


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
        entry = next(e for e in space.entries if e.name == f.knob)
        wanted.append({"kind": "widen", "knob": f.knob, "evidence": f.evidence, **_wider(entry, f.side, space, legal)})
    wanted += [{"kind": "fix", "knob": f.knob, "value": f.value, "evidence": f.evidence} for f in reading.clear]
    for f in reading.empty:
        entry = next(e for e in space.entries if e.name == f.knob)
        wanted.append({"kind": "narrow", "knob": f.knob, "evidence": f.evidence, **_narrower(entry, f.side)})
    for name in reading.never[:MOST_DROPPED]:
        chance = reading.chance[name]
        shares = ", ".join(f"{v:.1%} of {o} (chance {chance[o]:.1%})" for o, v in reading.importance[name].items())
        entry = next(e for e in space.entries if e.name == name)
        value = entry.nearest(reading.best[name])
        wanted.append({"kind": "drop", "knob": name, "value": value, "evidence": f"{name} explains {shares}"})
    changes: list[Change] = []
    for raw in wanted:
        if len(changes) < MOST and raw["knob"] not in {c.knob for c in changes}:
            try:
                change = checked(raw, space, legal)
                space = applied(space, [change])
            except ConfigError:
                continue  # at what is legal already, or the last knob that moves
            changes.append(change)
    return changes


def checked(raw: Mapping[str, Any], space: Space, legal: Legal) -> Change:
    """A change of `space` from plain data: {kind, knob, and low and/or high | values | value, evidence}.

    widen and narrow take low and high (of a range) or values; fix takes value; drop too, else the knob's default.
    Raises `ConfigError` for what is no such change, for what is not legal, and if it left nothing to choose.
    """
    kind, knob = raw.get("kind"), raw.get("knob")
    if kind not in KINDS:
        raise ConfigError(f"change kind={kind} is unknown; {did_you_mean(str(kind), list(KINDS))}")
    entry = next((e for e in space.entries if e.name == knob), None)
    if entry is None:
        raise ConfigError(
            f"{kind} {knob}: {knob} is not in the search space; {did_you_mean(str(knob), [e.name for e in space.entries])}"
        )
    where, keys = f"{kind} {knob}", {"value"} if kind in ("fix", "drop") else {"values"} if entry.values else {"low", "high"}
    for key in sorted(set(raw) - {"kind", "knob", "evidence"} - keys):
        raise ConfigError(f"{where}: {key} is not a key here; give {' or '.join(sorted(keys))}")
    was: Any = entry.values or (entry.low, entry.high)
    now: Any
    if kind in ("fix", "drop"):
        if kind == "fix" and "value" not in raw:
            raise ConfigError(f"{where} lacks value; give the value to hold it at")
        now = raw.get("value", Knobs().as_dict()[entry.name])
        _within_legal(where, entry.name, (now,), legal)
    elif not set(raw) & keys:
        raise ConfigError(f"{where} lacks {' and '.join(sorted(keys))}; say how far")
    elif entry.values:
        if not isinstance(raw["values"], list | tuple) or any(isinstance(v, list | dict) for v in raw["values"]):
            raise ConfigError(f"{where}.values={raw['values']} is not a list of values; write [a, b, c]")
        now = tuple(raw["values"])
        if not (set(now) > set(was) if kind == "widen" else set(now) < set(was)):
            raise ConfigError(f"{where}: {shown(now)} does not {kind} {shown(was)}; {_remedy(kind)}")
        if len(now) < 2:
            raise ConfigError(f"{where}: {shown(now)} leaves nothing to choose; fix it instead")
        _within_legal(where, entry.name, tuple(v for v in now if v not in was), legal)
    else:
        now = (raw.get("low", entry.low), raw.get("high", entry.high))
        if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in now):
            raise ConfigError(f"{where}: {shown(now)} are not two numbers; give low and high")
        outer, inner = (now, was) if kind == "widen" else (was, now)
        if not outer[0] <= inner[0] <= inner[1] <= outer[1] or now == was:
            raise ConfigError(f"{where}: {shown(now)} does not {kind} {shown(was)}; {_remedy(kind)}")
        if now[0] == now[1]:
            raise ConfigError(f"{where}: {shown(now)} leaves nothing to choose; fix it instead")
        _within_legal(where, entry.name, tuple(n for n, w in zip(now, was, strict=True) if n != w), legal)
    change = Change(kind, entry.name, was, now, str(raw.get("evidence") or ""))
    space_from_config(as_config(applied(space, [change])), {})
    return change


def applied(space: Space, changes: Sequence[Change]) -> Space:
    """`space` with the changes made, one after the other."""
    for change in changes:
        entries = []
        for e in space.entries:
            if e.name != change.knob:
                entries.append(e)
            elif change.kind in ("widen", "narrow"):
                new = replace(e, values=change.now) if e.values else replace(e, low=change.now[0], high=change.now[1])
                entries.append(new)
        held = {change.knob: change.now} if change.kind in ("fix", "drop") else {}
        space = replace(space, entries=tuple(entries), fixed={**space.fixed, **held})
    return space


def as_config(space: Space) -> dict[str, Any]:
    """The space as `search_space` in YAML would say it, what is held included."""
    return {**space.fixed, **space.as_dict()}


def _remedy(kind: str) -> str:
    return "keep all it has and add to it" if kind == "widen" else "keep a part of it"


def _within_legal(where: str, name: str, values: Sequence[Any], legal: Legal) -> None:
    low, high = legal.get(name, (-math.inf, math.inf))
    for value in values:
        if isinstance(value, int | float) and not low <= value <= high:
            raise ConfigError(f"{where}: {value:g} is outside {low:.4g} .. {high:.4g}, this machine's limits; stay inside")


def _wider(entry: Entry, side: str, space: Space, legal: Legal) -> dict[str, Any]:
    """Twice as far at `side`, or the next value of the list; less, if only that is legal. Empty if nothing is."""

    def is_legal(now: dict[str, Any]) -> bool:
        try:
            checked({"kind": "widen", "knob": entry.name, **now}, space, legal)
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
