"""Space: the knobs that vary, the fixed ones, and the translation between knob values and Optuna's parameters.

`parse.py` describes how a space is written in YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine import Knobs
from engine.effective import effective
from engine.errors import did_you_mean
from engine.knobs import LOSSY, removed
from engine.system.strict_json import to_json
from harness import ConfigError

from .entry import Entry, show

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial


@dataclass(frozen=True)
class Space:
    """The knobs that vary (`entries`, each after those that its condition names) and those that are `fixed`."""

    entries: tuple[Entry, ...]
    fixed: Mapping[str, Any]
    footprint: Callable[[Knobs], Any] | None = field(default=None, compare=False)  # decides which knobs have an effect

    @property
    def flat(self) -> bool:
        """Whether no knob has a condition."""
        return not any(e.when for e in self.entries)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Knob values for Optuna's parameters, with the fixed knobs and without knobs that have no effect.

        A knob whose condition does not hold needs no parameter and gets no value.
        """
        return effective({**self.fixed, **self._walk(lambda e: _given(e, params))[1]}, self.footprint)

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters for knob values. A knob that is not given gets its default, or the nearest value.

        Raises `ConfigError` for a value outside the space, and for a knob whose condition does not hold.
        """
        for name in values:
            self.entry(name)
        params, got = self._walk(lambda e: _nearest(e, values))
        for name in sorted(set(values) - set(params)):
            unmet = [(k, v) for k, v in self.entry(name).when if k not in got or got[k] not in v]
            rule = " and ".join(f"{k}={'|'.join(map(show, v))}" for k, v in unmet)
            raise ConfigError(f"{name}={show(values[name])} exists only with {rule}; set that too or leave {name} out")
        return params

    def entry(self, name: str) -> Entry:
        """The entry of this name. Raises `ConfigError` if there is none."""
        entry = next((e for e in self.entries if e.name == name), None)
        if entry is None:
            if line := removed(name):
                raise ConfigError(line)
            raise ConfigError(f"{name} is not in the search space; {did_you_mean(name, [e.name for e in self.entries])}")
        return entry

    def active(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        """The names of the entries whose conditions hold under these knob values."""
        names: list[str] = []
        for e in self.entries:
            if e.exists({name: values[name] for name in names if name in values}):
                names.append(e.name)
        return tuple(names)

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Suggest all knobs that exist in an Optuna trial. Returns their values, as `values` does."""
        return self.values(self._walk(lambda e: e.suggest(trial))[0])

    def distributions(self) -> dict[str, BaseDistribution]:
        """The Optuna distributions of all entries, including those with a condition."""
        return {e.name: e.distribution() for e in self.entries}

    def from_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The knob values of a row, in a form that `params` accepts: knobs of the space that had an effect.

        Two values can mean the same, such as `all` layers and their number; the result has the one that the space has.
        """
        live = effective({k: row[k] for k in (*self.fixed, *(e.name for e in self.entries))}, self.footprint)
        held = dict(live)
        for e in (e for e in self.entries if e.name in held and not holds(e, held[e.name])):
            same = (v for v in e.values or e.ends() if effective({**held, e.name: v}, self.footprint) == live)
            held[e.name] = next(same, held[e.name])
        return {k: held[k] for k in self.active(held) if k in held}

    def anchors(self) -> list[dict[str, Any]]:
        """Optuna's parameters of the first trials: all defaults, then the four corners of cache_gb x precision.

        The corners span the ends of the front. All other knobs have their defaults.
        """
        cache = [e for e in self.entries if e.name == "cache_gb"]
        lossy = [e for e in self.entries if e.name in LOSSY]
        corners = [
            {e.name: e.ends()[c] for e in cache} | {e.name: e.ends()[p] for e in lossy}
            for c, p in ((0, 0), (1, 1), (1, 0), (0, 1))
        ]
        points = [self._walk(lambda e, v=values: _nearest(e, v))[0] for values in ({}, *corners)]  # type: ignore[misc]
        points = [self._with_one_token(p) for p in points]
        seen = {canonical(self.values(p)): p for p in reversed(points)}
        return [p for p in points if seen[canonical(self.values(p))] is p]

    def _with_one_token(self, params: dict[str, Any]) -> dict[str, Any]:
        """Parameters whose cache holds one token's experts; at two widths that takes slots of both.

        They stay as they are if the footprint is not known or no value of the space is large enough.
        """
        knobs = Knobs.from_mapping(self.values(params)) if self.footprint is not None and "cache_gb" in params else Knobs()
        if self.footprint is None or knobs.cache_gb is None:
            return params
        entry, need = self.entry("cache_gb"), self.footprint(knobs).one_token_gb
        if knobs.cache_gb >= need or entry.ends()[1] < need:
            return params
        return {**params, "cache_gb": entry.encode(entry.at_least(need))}

    def as_dict(self) -> dict[str, Any]:
        """The entries as in YAML, for the manifest and the fingerprint."""
        return {e.name: e.as_config() for e in self.entries}

    def as_config(self) -> dict[str, Any]:
        """Entries and fixed knobs as in YAML: `space_from_config` of it gives the same space."""
        return {**self.as_dict(), **self.fixed}

    def _walk(self, raw: Callable[[Entry], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters and values of all entries that exist; `raw` gives an entry's parameter."""
        params: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for e in self.entries:
            if e.exists(values):
                params[e.name] = raw(e)
                values[e.name] = e.decode(params[e.name])
        return params, values


def canonical(values: Mapping[str, Any]) -> str:
    """A setting as text; equal settings have equal texts."""
    return to_json(dict(values), sort_keys=True)


def holds(entry: Entry, value: Any) -> bool:
    """Whether an entry has this value."""
    try:
        entry.encode(value)
    except ConfigError:
        return False
    return True


def _given(entry: Entry, params: Mapping[str, Any]) -> Any:
    if entry.name not in params:
        raise ConfigError(f"{entry.name} is missing: its condition holds under the other knobs of this setting; set it")
    return params[entry.name]


def _nearest(entry: Entry, values: Mapping[str, Any]) -> Any:
    """An entry's parameter: of its value in `values`, else of the default or the value nearest to it."""
    return entry.encode(values[entry.name] if entry.name in values else entry.nearest(Knobs().as_dict()[entry.name]))
