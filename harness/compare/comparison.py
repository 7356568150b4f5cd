"""Comparison: all results of comparing the later studies with the first one, and their JSON document.

The document has no NaN: a figure that is unknown is null. `docs/compare.md` describes its keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import __version__
from harness.best.commands import setting_of

from .fronts import Fronts, compare_fronts
from .identity import GROUPS, Identity, facts, identity
from .regression import Regression, regressions
from .settings import Pairing, Ratio, Shared, pairings, shared
from .sides import Side, read_sides

FORMAT = 1  # of the JSON document


@dataclass(frozen=True)
class Against:
    """A later study compared with the base."""

    side: Side
    identity: Identity
    pairings: list[Pairing]
    shared: Shared
    fronts: Fronts
    regressions: list[Regression]


@dataclass(frozen=True)
class Comparison:
    """The base, the later studies against it, and the limit of a regression (None: not judged)."""

    base: Side
    others: list[Against]
    limit: float | None

    @property
    def sides(self) -> list[Side]:
        return [self.base, *(one.side for one in self.others)]

    @property
    def regressions(self) -> list[Regression]:
        return [found for one in self.others for found in one.regressions]


def compare(folders: Sequence[Path], limit: float | None = None) -> Comparison:
    """Compare the studies in `folders` with the first of them. Raises `ResultsError` for damaged rows, for a study without
    figures and, with a limit, for a study that cannot be judged."""
    base, *others = read_sides(folders)
    found = []
    for other in others:
        known = identity(base, other)
        pairs, both = pairings(base, other, known), shared(base, other, known)
        worse = [] if limit is None else regressions(base, other, known, pairs, both, limit)
        found.append(Against(other, known, pairs, both, compare_fronts(base, other, known), worse))
    return Comparison(base, found, limit)


def document(found: Comparison) -> dict[str, Any]:
    """The comparison, JSON-ready."""
    return plain({
        "format": FORMAT,
        "headrace_version": __version__,
        "base": found.base.name,
        "studies": [_study(side) for side in found.sides],
        "comparisons": [_against(found.base, one) for one in found.others],
        "regression": None if found.limit is None else {
            "limit": found.limit,
            "found": [_regression(r) for r in found.regressions],
        },
    })  # fmt: skip


def _study(side: Side) -> dict[str, Any]:
    return {
        "name": side.name,
        "folder": str(side.folder),
        "title": side.title,
        "counts": side.counts,
        "facts": facts(side),
        "noise": {name: side.noise.loc[name, "sd"] for name in side.metrics},
        "recommended": {
            name: None if point is None else _point(side, point) | {"confirmed": choice.confirmed if choice else None}
            for name, point, choice in side.named
        },
        "front": [_point(side, point) | {"confirmed": bool(point["confirmed"])} for _, point in side.front.iterrows()],
    }


def _point(side: Side, point: Mapping[str, Any]) -> dict[str, Any]:
    figures = {n: {"value": point[n], "low": point[f"{n}_low"], "high": point[f"{n}_high"]} for n in side.metrics}
    live = setting_of(point)
    return {
        "trial": int(point["trial"]),
        "runs": int(point["runs"]),
        "fresh_runs": int(point["fresh_runs"]),
        "knobs": {name: getattr(live, name) for name in live.set_names()},
        "figures": figures,
    }


def _against(base: Side, one: Against) -> dict[str, Any]:
    return {
        "study": one.side.name,
        "base": base.name,
        "differences": [dataclasses.asdict(d) for d in one.identity.differences],
        "same": list(one.identity.same),
        "groups": list(GROUPS),
        "incomparable": {n: why for n, why in one.identity.incomparable.items() if n in base.metrics},
        "causes": list(one.identity.causes),
        "settings": [_pairing(p, one.identity) for p in one.pairings],
        "settings_in_both": {
            "count": len(one.shared.pairs),
            "means": _ratios(one.shared.means, one.identity),
            "pairs": [
                {"base_trial": a, "trial": b, "ratios": _ratios(found, one.identity)} for a, b, found in one.shared.pairs
            ],
        },
        "fronts": _fronts(one.fronts),
    }


def _pairing(p: Pairing, known: Identity) -> dict[str, Any]:
    trial = lambda point: None if point is None else int(point["trial"])  # noqa: E731
    return {
        "name": p.name,
        "rule": p.rule or None,
        "base_trial": trial(p.base),
        "trial": trial(p.other),
        "base_confirmed": p.base_confirmed,
        "confirmed": p.other_confirmed,
        "same_setting": p.same_setting,
        "changed": p.changed or None,
        "ratios": _ratios(p.ratios, known),
    }


def _ratios(some: Mapping[str, Ratio], known: Identity) -> dict[str, Any]:
    out = {}
    for name, ratio in some.items():
        low, high = ratio.limits()
        comparable = name not in known.incomparable
        out[name] = {
            "ratio": ratio.middle, "low": low, "high": high, "comparable": comparable,
            "verdict": ratio.verdict if comparable else None,
        }  # fmt: skip
    return out


def _fronts(fronts: Fronts) -> dict[str, Any]:
    if fronts.reason:
        return {"comparable": False, "reason": fronts.reason}
    return {
        "comparable": True,
        "corner": fronts.corner,
        "base_hypervolume": fronts.volumes[0],
        "hypervolume": fronts.volumes[1],
        "ratio": fronts.ratio,
        "low": fronts.low,
        "high": fronts.high,
        "verdict": fronts.verdict,
        "base_beaten": fronts.base_beaten,
        "beaten": fronts.other_beaten,
    }


def _regression(found: Regression) -> dict[str, Any]:
    if found.ratio is None:
        return {"study": found.study, "setting": found.name, "metric": None, "text": str(found)}
    low, high = found.ratio.limits()
    return {
        "study": found.study, "setting": found.name, "metric": found.metric,
        "ratio": found.ratio.middle, "low": low, "high": high, "text": str(found),
    }  # fmt: skip


def plain(value: Any) -> Any:
    """`value` with Python's own numbers, lists and dictionaries, and null for NaN and infinities."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value
