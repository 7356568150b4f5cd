"""The search space: which knobs may move, how far, and how Optuna sees them.

An ordered choice is shown to the sampler as the index of its value, so that it learns the order and a later value
appended to the list is legal. A float is rounded to four digits before it is used: nobody needs cache_gb=0.0123456789.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine import KnobError, Knobs
from engine.errors import did_you_mean
from engine.knobs import CACHE_DEPENDENT, LOSSY, NEEDS_COLD, NEEDS_MISSES

from . import ConfigError

FIELDS = {
    "float": ({"low", "high"}, {"log"}),
    "int": ({"low", "high"}, {"log"}),
    "ordinal": ({"values"}, set()),
    "choice": ({"values"}, set()),
}


@dataclass(frozen=True)
class Entry:
    """One knob that moves: a range of numbers, or a tuple of values."""

    name: str
    type: str
    low: float = 0
    high: float = 0
    log: bool = False
    values: tuple[Any, ...] = ()

    def decode(self, raw: Any) -> Any:
        """The knob's value for what Optuna suggested."""
        if self.values:
            return self.values[raw] if self.type == "ordinal" else raw
        if self.type == "int":
            return int(raw)
        return min(max(float(f"{raw:.4g}"), self.low), self.high)

    def encode(self, value: Any) -> Any:
        """What Optuna is told for a knob's value; raises `ConfigError` for one outside the entry."""
        if value in self.values or (not self.values and isinstance(value, int | float) and self.low <= value <= self.high):
            return self.values.index(value) if self.type == "ordinal" else value
        legal = ", ".join(map(_show, self.values)) or f"{self.low:g} .. {self.high:g}"
        raise ConfigError(f"{self.name}={_show(value)} is outside its search space ({legal}); move it or widen the space")

    def ends(self) -> tuple[Any, Any]:
        """The first and the last value; of a lossy knob, the one that loses most first: of a precision that with fewest
        bits, of one that decides by the cache the largest. The checkpoint's own is last."""
        ends = self.values or (self.decode(self.low), self.decode(self.high))
        if self.name in LOSSY:
            ends = tuple(sorted(ends, key=lambda v: (v is None, v or 0), reverse=self.name in CACHE_DEPENDENT))
        return ends[0], ends[-1]

    def nearest(self, wanted: Any) -> Any:
        """`wanted` if the entry holds it, else its value nearest to it (of a choice: the first)."""
        if wanted in self.values:
            return wanted
        if self.values:
            numbers = [v for v in self.values if isinstance(v, int | float)]
            if not numbers or not isinstance(wanted, int | float):
                return self.values[-1] if self.name in LOSSY else self.values[0]
            return min(numbers, key=lambda v: abs(v - wanted))
        if wanted is None:
            middle = (self.low * self.high) ** 0.5 if self.log else (self.low + self.high) / 2
            return self.decode(middle)
        return self.decode(min(max(wanted, self.low), self.high))


@dataclass(frozen=True)
class Space:
    """The knobs that move (`entries`) and those that are held (`fixed`)."""

    entries: tuple[Entry, ...]
    fixed: Mapping[str, Any]
    holds_all: Callable[[Knobs], bool] = field(default=lambda _: False, compare=False)  # is every expert cached?

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Knob values for Optuna's parameters, with the fixed ones and without those that could have no effect."""
        values = effective({**self.fixed, **{e.name: e.decode(params[e.name]) for e in self.entries}})
        sizes = {k: v for k, v in values.items() if k in (*LOSSY, "cache_gb") and k not in CACHE_DEPENDENT}
        if values.get("cache_gb") is not None and self.holds_all(Knobs.from_mapping(sizes)):
            values = effective({k: v for k, v in values.items() if k not in NEEDS_MISSES})
        return values

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters for knob values; a knob that is not given is at its default, or the nearest to it."""
        for name in values:
            if name not in {e.name for e in self.entries}:
                raise ConfigError(f"{name} is not in the search space; {did_you_mean(name, [e.name for e in self.entries])}")
        defaults = Knobs().as_dict()
        return {e.name: e.encode(values[e.name] if e.name in values else e.nearest(defaults[e.name])) for e in self.entries}

    def from_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a Parquet row that `params` can take back: those of the space, without what had no effect."""
        held = {e.name for e in self.entries}
        return {k: row[k] for k in effective({k: row[k] for k in Knobs.names()}) if k in held}

    def anchors(self) -> list[dict[str, Any]]:
        """The first trials: the defaults, then the corners of {cache_gb} x {precision}, all else at its default.

        Smallest cache with lowest precision, largest with highest, and the two mixed ones span the front's ends.
        """
        cache = [e for e in self.entries if e.name == "cache_gb"]
        lossy = [e for e in self.entries if e.name in LOSSY]
        corners = [
            {e.name: e.ends()[c] for e in cache} | {e.name: e.ends()[p] for e in lossy}
            for c, p in ((0, 0), (1, 1), (1, 0), (0, 1))
        ]
        points = [self.params(values) for values in ({}, *corners)]
        seen = {canonical(self.values(p)): p for p in reversed(points)}
        return [p for p in points if seen[canonical(self.values(p))] is p]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for the manifest and the fingerprint."""
        return {e.name: {"type": e.type} | ({"values": list(e.values)} if e.values else _range(e)) for e in self.entries}


def effective(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` without those that could have no effect, which `Knobs` refuses: a flat space proposes them all the same."""
    kept = dict(values)
    if kept.get("bits_plan") is not None:
        kept = {k: v for k, v in kept.items() if k not in ("expert_bits", "cold_bits")}
    if kept.get("cold_bits") is None:
        kept = {k: v for k, v in kept.items() if k not in NEEDS_COLD}
    if kept.get("sync_window", 1) != 1:
        kept = {k: v for k, v in kept.items() if k != "prefetch" and k not in CACHE_DEPENDENT}
    if (kept.get("cold_lowbit") or 0) <= (kept.get("cold_drop") or 0) or kept.get("cold_bits") or kept.get("bits_plan"):
        kept = {k: v for k, v in kept.items() if k not in ("cold_lowbit", "lowbit_share")}
    if kept.get("cold_lowbit"):
        kept.pop("pinned_share", None)
    if kept.get("prefetch", "off") == "off":
        kept = {k: v for k, v in kept.items() if not k.startswith("prefetch_")}
    if kept.get("cache_gb") is None:
        kept = {k: v for k, v in kept.items() if k in (*LOSSY, "prefill_chunk") and k not in CACHE_DEPENDENT}
    return kept


def canonical(values: Mapping[str, Any]) -> str:
    """One text for one setting."""
    return json.dumps(dict(values), sort_keys=True)


def space_from_config(config: Mapping[str, Any], fixed: Mapping[str, Any]) -> Space:
    """Read and check `search_space` and `knobs`. Raises `ConfigError` with one line that names entry, limit and remedy."""
    for where, names in (("knobs", fixed), ("search_space", config)):
        for name in names:
            if name not in Knobs.names():
                raise ConfigError(f"{where}.{name}: {name} is not a knob; {did_you_mean(str(name), list(Knobs.names()))}")
    for name in sorted(set(fixed) & set(config)):
        raise ConfigError(f"knobs.{name}={fixed[name]} is in the search space too; fix it with search_space.{name}=VALUE")
    plain = {k: v for k, v in config.items() if not isinstance(v, Mapping)}
    space = Space(tuple(_entry(k, v) for k, v in config.items() if isinstance(v, Mapping)), {**fixed, **plain})
    if not space.entries:
        raise ConfigError("search_space has no knob that moves; choose one with search_space=NAME")
    for name, value in space.fixed.items():
        _check(f"{'knobs' if name in fixed else 'search_space'}.{name}", name, value)
    for params in space.anchors():
        _knobs("search_space", space.values(params))
    return space


def _entry(name: str, raw: Mapping[str, Any]) -> Entry:
    where, kind = f"search_space.{name}", raw.get("type")
    if kind not in FIELDS:
        raise ConfigError(f"{where}.type={_show(kind)} is unknown; choose one of: {', '.join(FIELDS)}")
    needed, optional = FIELDS[kind]
    given = set(raw) - {"type"}
    for key in sorted(needed - given):
        raise ConfigError(f"{where} lacks {key}; a {kind} needs {' and '.join(sorted(needed, reverse=True))}")
    for key in sorted(given - needed - optional):
        raise ConfigError(f"{where}.{key} is not a key of a {kind}; {did_you_mean(key, sorted(needed | optional))}")
    if "values" in needed:
        values = raw["values"]
        if not isinstance(values, list | tuple) or not values or any(isinstance(v, list | dict) for v in values):
            raise ConfigError(f"{where}.values={_show(values)} is not a list of values; write [a, b, c]")
        if len(set(values)) < len(values):
            raise ConfigError(f"{where}.values={_show(list(values))} holds a value twice; drop one")
        entry = Entry(name, kind, values=tuple(values))
        checked = entry.values
    else:
        low, high, log = raw["low"], raw["high"], raw.get("log", False)
        for key, number in (("low", low), ("high", high)):
            if isinstance(number, bool) or not isinstance(number, int if kind == "int" else int | float):
                raise ConfigError(f"{where}.{key}={_show(number)} is not a{' whole' if kind == 'int' else ''} number")
        if not isinstance(log, bool):
            raise ConfigError(f"{where}.log={_show(log)} is neither true nor false")
        if low > high:
            raise ConfigError(f"{where}.low={low:g} is above its high={high:g}; lower one or raise the other")
        if log and low <= 0:
            raise ConfigError(f"{where}.low={low:g} has no logarithm; raise it above 0 or drop log")
        entry = Entry(name, kind, low=low, high=high, log=log)
        checked = (low, high)
    for value in checked:
        _check(where, name, value)
    return entry


def _check(where: str, name: str, value: Any) -> None:
    """Raise unless `name=value` is legal for some setting of the other knobs."""
    others: dict[str, Any] = {"cache_gb": 1.0} if name not in LOSSY or name in CACHE_DEPENDENT else {}
    if name in NEEDS_COLD:
        others["cold_bits"] = 2
    if name == "lowbit_share":
        others["cold_lowbit"] = 1.0
    if name.startswith("prefetch_"):
        others["prefetch"] = "stale_gate"
    if name != "cache_gb" or value is not None:
        _knobs(where, {**others, name: value})


def _knobs(where: str, values: Mapping[str, Any]) -> Knobs:
    try:
        return Knobs.from_mapping(values)
    except KnobError as e:
        raise ConfigError(f"{where}: {e}") from e


def _range(entry: Entry) -> dict[str, Any]:
    return {"low": entry.low, "high": entry.high, "log": entry.log}


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
