"""What the points of a search say about the knobs: which matter for what, optima at a bound, parts without a good point.

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
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import Knobs

from .columns import Direction
from .space import Entry, Space

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
            what = f"all {fine.sum()} good points have {entry.name}={shown(entry.values[round(step)])}"
            findings.append(
                Finding(entry.name, f"{what}, as have {same.sum()} of {len(place)} tried", value=entry.values[round(step)])
            )
    return findings


def _none(count: int, marked: int, drawn: int) -> float:
    """Probability of no marked one among `drawn` of `count`, `marked` of which are marked (hypergeometric)."""
    return math.comb(count - marked, drawn) / math.comb(count, drawn)


def shown(value: Any) -> str:
    """A value, or several, as short as can be said."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return "unset" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
