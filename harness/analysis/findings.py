"""Findings: what the trials of a search show about its knobs: no effect, an optimum at a bound, an empty part, a clear
value.

Importance is that of `importance.py`. An optimum at a bound is a slope, significantly different from 0 there, of a model
with a linear and a quadratic term for each knob. An empty part or a clear value is an exact test (hypergeometric) against
the places that were tried, so that a sampler that crowds one end, or anchors that start there, prove nothing. Each family
of tests is wrong on pure noise in about 1 of 20 cases (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from engine import Knobs
from harness.results.metrics import Direction
from harness.space.entry import Entry, shown
from harness.space.space import Space

from .importance import SPARE, Importance, importance, logs, plain
from .pareto import knee, losses, measured, nondominated

if TYPE_CHECKING:
    import pandas as pd

MIN_POINTS = 30  # nothing is found with fewer points, nor with fewer than SPARE points more than terms
ERROR = 0.05  # probability of a false finding in a family of tests on pure noise
NEGLIGIBLE = 0.01  # share of an objective that is too small to matter
SEEN = 3  # points in each end third of a range, or with each choice, before its knob can be without effect
EXPLAINED = 0.5  # share of each objective's variance to explain before a knob can be without effect
TAIL = 1 / 3  # part of a range that one narrowing removes
GOOD = 0.25  # share of the points that count as good, taken front by front


@dataclass(frozen=True)
class Finding:
    """One finding on a knob: an optimum at a bound (`side` low or high), an empty `side`, or a clear `value`."""

    knob: str
    evidence: str
    side: str = ""
    value: Any = None


@dataclass(frozen=True)
class Findings:
    """All findings. With fewer than `MIN_POINTS` points in the space there is only importance.

    never: knobs of the space without effect on any objective beyond chance; best: the setting of the front's knee.
    """

    importance: Importance
    never: tuple[str, ...] = ()
    bounds: tuple[Finding, ...] = ()
    empty: tuple[Finding, ...] = ()
    clear: tuple[Finding, ...] = ()
    best: Mapping[str, Any] = field(default_factory=dict)


def findings_of(df: pd.DataFrame, space: Space, objectives: Mapping[str, Direction], seed: int = 0) -> Findings:
    """The findings of rows on the knobs of `space`. Settings outside the space count for importance only."""
    found, table = importance(df, seed), measured(df)
    settings = [space.from_row(plain(row)) for row in table[list(Knobs.names())].to_dict("records")]
    places = np.array([[_place(e, s) for e in space.entries] for s in settings]).reshape(len(settings), len(space.entries))
    inside = ~np.isinf(places).any(axis=1)
    table, places = table[inside], places[inside]
    terms = [_terms(e, places[:, i]) for i, e in enumerate(space.entries)]
    if len(table) < max(MIN_POINTS, sum(t.shape[1] for t in terms) + SPARE):
        return Findings(found)
    varying = {o: logs(table[o].to_numpy(float)) for o in objectives if o in found.objectives}
    known = bool(varying) and all(found.explained.get(o, 0.0) >= EXPLAINED for o in varying)
    tried = [e.name for i, e in enumerate(space.entries) if known and _everywhere(e, places[:, i]) and e.name in found.share]
    floor = {o: NEGLIGIBLE**2 / y.var() for o, y in varying.items()}
    good = _good(losses(table, list(objectives)))
    return Findings(
        found,
        tuple(n for n in tried if all(found.share[n][o] <= max(found.chance[n][o], floor[o]) for o in varying)),
        tuple(_bounds(space, places, terms, varying, objectives)),
        tuple(_empty(space, places, good)),
        tuple(_clear(space, places, good)),
        plain(measured(df).loc[knee(df), list(Knobs.names())]),
    )


def _good(values: np.ndarray) -> np.ndarray:
    """The good points: whole fronts, removed one by one, until their share is `GOOD`; at most 1/8 more. bool (points)."""
    good = np.zeros(len(values), bool)
    while good.mean() < GOOD:
        left = np.flatnonzero(~good)
        layer = left[nondominated(values[left])]
        if good.any() and (good.sum() + len(layer)) / len(values) > GOOD + 1 / 8:
            break
        good[layer] = True
    return good


def _place(entry: Entry, values: Mapping[str, Any]) -> float:
    """The place of a value in its entry, 0 .. 1; the index of a choice; NaN without effect, inf outside the entry."""
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
    """The model's columns of a knob (points, terms), centred over the points where it had an effect, 0 elsewhere."""
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
    """Whether both end thirds of the range, or all values of a choice, were tried at least `SEEN` times."""
    if entry.type == "choice":
        counts = [int((place == i).sum()) for i in range(len(entry.values))]
    else:
        counts = [int((place <= TAIL).sum()), int((place >= 1 - TAIL).sum())]
    return min(counts) >= SEEN


def _bounds(
    space: Space,
    places: np.ndarray,
    terms: Sequence[np.ndarray],
    logs: Mapping[str, np.ndarray],
    directions: Mapping[str, Direction],
) -> list[Finding]:
    """Bounds with an optimum, by objective, then by strength.

    The model's slope still improves the objective there, and most of the best sixth of the points, adjusted for the other
    knobs, lie in the third at that end.
    """
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
    """A knob's part of the model: its weights, their covariance, and y adjusted for the other knobs."""

    weights: np.ndarray
    covariance: np.ndarray
    alone: np.ndarray

    def slope(self, side: str, step: float) -> tuple[float, float]:
        """The decrease of y over a `step` outwards at an end, and its standard error."""
        outwards = np.array([1.0, 2.0] if side == "high" else [-1.0, 0.0])[: len(self.weights)]
        gain = -float(outwards @ self.weights) * step
        return gain, max(float(outwards @ self.covariance @ outwards), 0.0) ** 0.5 * step


def _straightened(terms: Sequence[np.ndarray], y: np.ndarray) -> list[_Fit]:
    """The model, fitted twice: the second fit omits quadratic terms within two standard errors of 0 in the first."""
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
    """End thirds of ranges without a good point, where chance would have put some."""
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
    """Values that all good points have, although other values were tried."""
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
    """Probability that none of `drawn` points is marked, if `marked` of `count` are (hypergeometric)."""
    return math.comb(count - marked, drawn) / math.comb(count, drawn)
