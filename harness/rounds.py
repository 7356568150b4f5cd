"""Rounds that learn: read what the points say about the knobs, and propose the next search space as a stated hypothesis.

    reading = read(df, space, objectives)              what is known, or nothing where chance could say the same
    changes = next_space(reading, space, legal)        at most MOST changes, each with its evidence in one sentence
    space = applied(space, changes)
    verdict(before, after, objectives)                 was the round worth it, beyond the noise?

Importance is the share of an objective's variance (of its logarithm) that a knob alone explains in a model with a linear
and a quadratic term a knob, fitted to all of them together; chance is what the same knob gets with its values shuffled.
Optuna's PED-ANOVA would look at the best quarter alone: of 60 points, where one knob has 0.3 of the strongest one's effect,
it told that knob from a shuffled one in 5 of 20 seeds. An optimum at a bound is the same model's slope there, far from 0;
an empty part or a clear value is an exact test (hypergeometric) against where the points lie that were tried: a sampler
that crowds an end, or the anchors that begin there, prove nothing. Each family of tests is wrong on pure noise in about 1
of 20 cases (Bonferroni). A reading of 60 points takes about 0.2 s.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import Knobs
from engine.errors import did_you_mean

from . import ConfigError
from .columns import Direction
from .front import volume as _volume
from .space import Entry, Space, space_from_config

if TYPE_CHECKING:
    import pandas as pd

MIN_POINTS = 30  # below, and with fewer than SPARE points more than the model has terms, nothing is read
SPARE = 15
SHUFFLES = 200
ERROR = 0.05  # of a family of tests on pure noise
CHANCE = 0.99  # of shuffled columns explain less than what counts as chance
NEGLIGIBLE = 0.01  # of an objective, as a standard deviation or over the last step: too little to matter
SEEN = 3  # least points in each end third of a range, or with each choice, before its knob is said never to matter
EXPLAINED = 0.5  # least share of each objective's variance to be explained before a knob is said never to matter
TAIL = 1 / 3  # of a range that narrowing takes away at once
GOOD = 0.25  # of the points that count as good: the best by how many layers of other points beat them
DRAWS = 200  # of the bootstrap of a verdict
UNKNOWN = 0.1  # standard deviation of a speed between runs, as a share, while nothing was measured twice
SPEEDS = ("decode_tok_s", "prefill_tok_s", "ttft_ms")
MOST = 4  # changes a round
MOST_DROPPED = 2  # of them
KINDS = ("widen", "narrow", "fix", "drop")
Legal = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Finding:
    """Something that the points say of a knob: at a bound (`side` low or high), empty (`side`), or clear (`value`)."""

    knob: str
    evidence: str
    side: str = ""
    value: Any = None


@dataclass(frozen=True)
class Reading:
    """What `points` points say; all is empty below `MIN_POINTS`.

    importance and chance: knob -> objective -> share of variance; explained: objective -> share; never: the knobs that are
    within chance in every objective; best: the knobs of the point nearest to the ideal.
    """

    points: int
    importance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    chance: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    explained: Mapping[str, float] = field(default_factory=dict)
    never: tuple[str, ...] = ()
    bounds: tuple[Finding, ...] = ()
    empty: tuple[Finding, ...] = ()
    clear: tuple[Finding, ...] = ()
    best: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One change of the space: `was` and `now` are (low, high) or the tuple of values; of fix and drop, `now` the value."""

    kind: str
    knob: str
    was: Any
    now: Any
    evidence: str

    def __str__(self) -> str:
        return f"{self.kind} {self.knob}: {_shown(self.was)} -> {_shown(self.now)}"


@dataclass(frozen=True)
class Verdict:
    """Whether a round is kept: hypervolume of the front before and after, the gain's noise (one standard deviation)."""

    kept: bool
    before: float
    after: float
    noise: float
    evidence: str


def trusted(df: pd.DataFrame, objectives: Mapping[str, Direction]) -> pd.DataFrame:
    """The rows that may be learned from: ok, feasible, not suspect, not the reference, with all objectives."""
    rows = df[(df["status"] == "ok") & (df["trial"] != 0) & (df["origin"] != "reference")]
    rows = rows[rows["suspect"].isna() & (rows["feasible"].isna() | (rows["feasible"] == True))]  # noqa: E712
    return rows[rows[list(objectives)].apply(np.isfinite).all(axis=1)] if len(rows) else rows


def points(df: pd.DataFrame, objectives: Mapping[str, Direction]) -> pd.DataFrame:
    """One row a trial (the index): its knobs, and the objectives as the median of its runs."""
    rows = trusted(df, objectives).astype(dict.fromkeys(objectives, float))
    grouped = rows.groupby("trial")
    return grouped[list(Knobs.names())].nth(0).set_index(grouped["trial"].nth(0)).join(grouped[list(objectives)].median())


def read(df: pd.DataFrame, space: Space, objectives: Mapping[str, Direction], seed: int = 0) -> Reading:
    """What rows say of the knobs of `space`. Settings outside of it, of a round with another space, are left out."""
    table = points(df, objectives)
    settings = [space.from_row(_plain(row)) for row in table[list(Knobs.names())].to_dict("records")]
    places = np.array([[_place(e, s) for e in space.entries] for s in settings]).reshape(len(settings), len(space.entries))
    inside = ~np.isinf(places).any(axis=1)
    table, places = table[inside], places[inside]
    terms = [_terms(e, places[:, i]) for i, e in enumerate(space.entries)]
    if len(table) < max(MIN_POINTS, sum(t.shape[1] for t in terms) + SPARE):
        return Reading(len(table))
    values = losses(table, objectives)
    names = [e.name for e in space.entries]
    importance: dict[str, dict[str, float]] = {n: {} for n in names}
    chance: dict[str, dict[str, float]] = {n: {} for n in names}
    explained = {}
    logs = {o: _log(table[o].to_numpy()) for o in objectives}
    varying = [o for o in objectives if np.ptp(logs[o]) > 1e-9]
    for o in varying:
        explained[o] = _explained(terms, logs[o])
        rng = np.random.default_rng(seed)
        for i, name in enumerate(names):
            others = [t for j, t in enumerate(terms) if j != i]
            importance[name][o], chance[name][o] = _share(terms[i], others, logs[o], ~np.isnan(places[:, i]), rng)
    known = bool(varying) and all(share >= EXPLAINED for share in explained.values())
    tried = {e.name for i, e in enumerate(space.entries) if known and _everywhere(e, places[:, i])}
    floor = {o: NEGLIGIBLE**2 / logs[o].var() for o in varying}
    ideal = (values - values.min(0)) / np.where(np.ptp(values, axis=0) > 0, np.ptp(values, axis=0), 1)
    best = table.iloc[int((ideal**2).sum(1).argmin())]
    good = _good(values)
    return Reading(
        len(table), importance, chance, explained,
        tuple(n for n in names if n in tried and all(importance[n][o] <= max(chance[n][o], floor[o]) for o in varying)),
        tuple(_bounds(space, places, terms, {o: logs[o] for o in varying}, objectives)),
        tuple(_empty(space, places, good)),
        tuple(_clear(space, places, good)),
        _plain({n: best[n] for n in Knobs.names()}),
    )  # fmt: skip


def losses(table: pd.DataFrame, objectives: Mapping[str, Direction]) -> np.ndarray:
    """(points, objectives), each so that less is better."""
    return table[list(objectives)].to_numpy(float) * [-1.0 if d == "maximize" else 1.0 for d in objectives.values()]


def on_front(values: np.ndarray) -> np.ndarray:
    """(points,) bool: no other point is as good in all of (points, objectives) losses and better in one."""
    return np.array([not ((values <= v).all(1) & (values < v).any(1)).any() for v in values], bool)


def _good(values: np.ndarray) -> np.ndarray:
    """The best quarter: whole fronts, peeled off one by one, as long as the next one leaves no more than `GOOD` + 1/8."""
    good = np.zeros(len(values), bool)
    while good.mean() < GOOD:
        left = np.flatnonzero(~good)
        layer = left[on_front(values[left])]
        if good.any() and (good.sum() + len(layer)) / len(values) > GOOD + 1 / 8:
            break
        good[layer] = True
    return good


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(values) if (values > 0).all() else values


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A data frame's row with None for NaN."""
    return {k: None if v is None or v != v else v for k, v in row.items()}


def _place(entry: Entry, values: Mapping[str, Any]) -> float:
    """Where a value lies in its entry, 0 .. 1 (of a choice: its index); NaN where the knob had no effect, inf outside."""
    if entry.name not in values:
        return math.nan
    value = values[entry.name]
    if entry.values:
        if value not in entry.values:
            return math.inf
        return entry.values.index(value) / (1 if entry.type == "choice" else max(len(entry.values) - 1, 1))
    if value is None or not entry.low <= value <= entry.high:
        return math.inf
    if entry.low == entry.high:
        return 0.0
    scale = math.log if entry.log else float
    return (scale(value) - scale(entry.low)) / (scale(entry.high) - scale(entry.low))


def _terms(entry: Entry, place: np.ndarray) -> np.ndarray:
    """(points, terms): the model's columns for a knob, centred over the points where it had an effect, else 0."""
    levels = np.unique(place[~np.isnan(place)])
    if entry.type == "choice":
        columns = [(place == level).astype(float) for level in levels[1:]]
    else:
        columns = [place, place**2][: max(len(levels) - 1, 0)]
    block = np.array(columns, float).reshape(len(columns), len(place)).T
    active = ~np.isnan(place)
    block[~active] = 0
    block[active] -= block[active].mean(0) if active.any() else 0
    return block


def _everywhere(entry: Entry, place: np.ndarray) -> bool:
    """Whether each third of the range, or each value of a choice, was tried often enough to say that it does not matter."""
    if entry.type == "choice":
        counts = [int((place == i).sum()) for i in range(len(entry.values))]
    else:
        counts = [int((place <= TAIL).sum()), int((place >= 1 - TAIL).sum())]
    return min(counts) >= SEEN


def _basis(blocks: Sequence[np.ndarray], count: int) -> np.ndarray:
    """An orthonormal basis of a constant and the blocks' columns, those left out that the others span."""
    u, s, _ = np.linalg.svd(np.column_stack([np.ones(count), *blocks]), full_matrices=False)
    return np.asarray(u[:, s > 1e-8 * s[0]])


def _explained(terms: Sequence[np.ndarray], y: np.ndarray) -> float:
    """Adjusted R2 of the whole model."""
    basis = _basis(terms, len(y))
    rest = y - basis @ (basis.T @ y)
    return float(1 - (rest @ rest) / (len(y) - basis.shape[1]) / y.var(ddof=1))


def _share(
    block: np.ndarray, others: Sequence[np.ndarray], y: np.ndarray, active: np.ndarray, rng: np.random.Generator
) -> tuple[float, float]:
    """Share of y's variance that only `block` explains, and what it gets by chance: the `CHANCE` quantile over shuffles
    of its rows (those in which the knob had an effect)."""
    if not block.shape[1]:
        return 0.0, 0.0
    basis = _basis(others, len(y))
    rest = y - basis @ (basis.T @ y)
    total = float(((y - y.mean()) ** 2).sum())

    rows = np.flatnonzero(active)
    draws = np.repeat(block[None], SHUFFLES + 1, axis=0)  # the first is the knob itself
    for draw in draws[1:]:
        draw[rows] = block[rng.permutation(rows)]
    own = draws - basis @ (basis.T @ draws)
    towards = np.einsum("dnt,n->dt", own, rest)
    gains = np.einsum("dt,dtu,du->d", towards, np.linalg.pinv(own.transpose(0, 2, 1) @ own, rcond=1e-8), towards) / total
    return float(gains[0]), float(np.quantile(gains[1:], CHANCE))


def _bounds(
    space: Space,
    places: np.ndarray,
    terms: Sequence[np.ndarray],
    logs: Mapping[str, np.ndarray],
    directions: Mapping[str, Direction],
) -> list[Finding]:
    """Ends at which an objective is best: it still improves there, by the model's slope, and the best sixth of the points,
    what the other knobs gave them taken off, crowds the third at that end. By objective, then by strength."""
    ordered = [(i, e) for i, e in enumerate(space.entries) if e.type != "choice" and terms[i].shape[1]]
    sure = NormalDist().inv_cdf(1 - ERROR / max(2 * len(ordered) * len(logs), 1))
    findings = []
    for name, y in logs.items():
        y = -y if directions[name] == "maximize" else y
        found = []
        model = _straightened(terms, y)
        for i, entry in ordered:
            active = ~np.isnan(places[:, i])
            fit = model[i]
            best = places[active, i][np.argsort(fit.alone[active], kind="stable")[: max(6, math.ceil(active.sum() / 6))]]
            step = 1 / max(len(entry.values) - 1, 1) if entry.values else 0.1
            for side, there in (("low", best <= TAIL), ("high", best >= 1 - TAIL)):
                gain, error = fit.slope(side, step)
                if gain > max(sure * error, NEGLIGIBLE) and there.sum() > len(best) / 2:
                    last = "last value" if entry.values else "last tenth"
                    what = f"{there.sum()} of the {len(best)} best points for {name} lie in the {side} third of {entry.name}"
                    what += f", and it still improves there, by {gain:.1%} +- {error:.1%} over the {last}"
                    found.append((-gain / (error or 1e-12), Finding(entry.name, what, side)))
        findings += [finding for _, finding in sorted(found, key=lambda pair: pair[0])]
    return findings


@dataclass(frozen=True)
class _Fit:
    """A knob's part of the model: its weights and their covariance, and y without what the other knobs gave."""

    weights: np.ndarray
    covariance: np.ndarray
    alone: np.ndarray

    def slope(self, side: str, step: float) -> tuple[float, float]:
        """How much y falls over a `step` outwards at an end, and the standard error of that."""
        outwards = np.array([1.0, 2.0] if side == "high" else [-1.0, 0.0])[: len(self.weights)]
        gain = -float(outwards @ self.weights) * step
        return gain, max(float(outwards @ self.covariance @ outwards), 0.0) ** 0.5 * step


def _straightened(terms: Sequence[np.ndarray], y: np.ndarray) -> list[_Fit]:
    """The model fitted twice: without the quadratic terms that the first fit cannot tell from 0 (two standard errors)."""
    kept = list(terms)
    for _ in range(2):
        design = np.column_stack([np.ones(len(y)), *kept])
        inverse = np.linalg.pinv(design.T @ design)
        weights = inverse @ design.T @ y
        rest = y - design @ weights
        covariance = inverse * float(rest @ rest) / (len(y) - design.shape[1])
        fits, start = [], 1
        for block in kept:
            own = slice(start, start + block.shape[1])
            fits.append(_Fit(weights[own], covariance[own, own], rest + block @ weights[own]))
            start = own.stop
        kept = [
            b[:, :1] if b.shape[1] == 2 and abs(f.weights[1]) < 2 * f.covariance[1, 1] ** 0.5 else b
            for b, f in zip(kept, fits, strict=True)
        ]
    return fits


def _empty(space: Space, places: np.ndarray, good: np.ndarray) -> list[Finding]:
    """Ends of ranges, a third or less of them, with no good point though chance would have put some there."""
    findings = []
    ordered = [(i, e) for i, e in enumerate(space.entries) if e.type != "choice"]
    for i, entry in ordered:
        active = ~np.isnan(places[:, i])
        place, fine = places[active, i], good[active]
        for side, ends in (("low", place < TAIL), ("high", place > 1 - TAIL)):
            if not fine[ends].any() and _none(len(place), int(ends.sum()), int(fine.sum())) < ERROR / (2 * len(ordered)):
                what = f"none of the {fine.sum()} good points lies in the {side} third of {entry.name}"
                findings.append(Finding(entry.name, f"{what}, where {ends.sum()} of {len(place)} were tried", side))
    return findings


def _clear(space: Space, places: np.ndarray, good: np.ndarray) -> list[Finding]:
    """Value lists all of whose good points have one value, though others were tried as well."""
    findings = []
    listed = [(i, e) for i, e in enumerate(space.entries) if e.values]
    for i, entry in listed:
        active = ~np.isnan(places[:, i])
        place, fine = places[active, i], good[active]
        kinds = set(place[fine])
        if len(kinds) != 1 or active.sum() < MIN_POINTS:
            continue
        same = place == kinds.pop()
        if _none(len(place), int((~same).sum()), int(fine.sum())) < ERROR / len(listed):
            step = place[same][0] * (1 if entry.type == "choice" else max(len(entry.values) - 1, 1))
            what = f"all {fine.sum()} good points have {entry.name}={_shown(entry.values[round(step)])}"
            findings.append(
                Finding(entry.name, f"{what}, as have {same.sum()} of {len(place)} tried", value=entry.values[round(step)])
            )
    return findings


def _none(count: int, marked: int, drawn: int) -> float:
    """Probability of no marked one among `drawn` of `count`, `marked` of which are marked (hypergeometric)."""
    return math.comb(count - marked, drawn) / math.comb(count, drawn)


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
            raise ConfigError(f"{where}: {_shown(now)} does not {kind} {_shown(was)}; {_remedy(kind)}")
        if len(now) < 2:
            raise ConfigError(f"{where}: {_shown(now)} leaves nothing to choose; fix it instead")
        _within_legal(where, entry.name, tuple(v for v in now if v not in was), legal)
    else:
        now = (raw.get("low", entry.low), raw.get("high", entry.high))
        if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in now):
            raise ConfigError(f"{where}: {_shown(now)} are not two numbers; give low and high")
        outer, inner = (now, was) if kind == "widen" else (was, now)
        if not outer[0] <= inner[0] <= inner[1] <= outer[1] or now == was:
            raise ConfigError(f"{where}: {_shown(now)} does not {kind} {_shown(was)}; {_remedy(kind)}")
        if now[0] == now[1]:
            raise ConfigError(f"{where}: {_shown(now)} leaves nothing to choose; fix it instead")
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


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(_shown, value)) + "]"
    return "unset" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


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
