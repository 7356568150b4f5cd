"""The search space: which knobs may move, how far and under which conditions, and how Optuna sees them.

An ordered choice is shown to the sampler as the index of its value, so that it learns the order and a later value
appended to the list is legal. A float is rounded to four digits before it is used: nobody needs cache_gb=0.0123456789.

An entry of `search_space` in YAML is one of

    cache_gb: {type: float, low: 12, high: 60, log: true}     also step; int likewise
    cache_gb: [one_token, 0.75 * memory_gb]                   a range, short; of whole numbers if the knob is one
    sync_window: {type: ordinal, values: [1, 4, all]}         ordered
    io_mode: {type: choice, values: [buffered, direct]}
    prefetch_depth: {type: int, low: 1, high: 4, when: {prefetch: stale_gate}}
    read_threads: 8                                           fixed

`when` names other knobs of the space and the value, or list of values, under which alone the knob exists; several must all
hold. A bound is NUMBER, NAME or NUMBER * NAME, where the names stand for what machine and model have (`BOUNDS`).
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine import KnobError, Knobs
from engine.effective import effective
from engine.errors import did_you_mean
from engine.knobs import CACHE_DEPENDENT, LOSSY, WORDS, enabling, removed
from harness import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

FIELDS = {
    "float": ({"low", "high"}, {"log", "step", "when"}),
    "int": ({"low", "high"}, {"log", "step", "when"}),
    "ordinal": ({"values"}, {"when"}),
    "choice": ({"values"}, {"when"}),
}
BOUNDS = {
    "one_token": "GB of the experts that one token asks for, as stored",
    "all_experts": "GB of all routed experts, as stored",
    "memory_gb": "GB of the machine",
    "limit_gb": "GB that a trial may use",
    "cores": "logical cores",
}
BOUND = re.compile(r"(?:(-?\d+(?:\.\d*)?|-?\.\d+)\s*\*\s*)?([A-Za-z_]\w*)")
WHOLE = {f.name for f in dataclasses.fields(Knobs) if str(f.type).startswith("int")}


@dataclass(frozen=True)
class Entry:
    """One knob that moves: a range of numbers (in steps from `low`, if it has a step), or a tuple of values. It exists where
    each knob in `when` has one of the values given there."""

    name: str
    type: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    values: tuple[Any, ...] = ()
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether these values of the other entries meet its conditions."""
        return all(parent in values and values[parent] in legal for parent, legal in self.when)

    @property
    def span(self) -> tuple[Any, ...]:
        """Its values, or the two ends of its range."""
        return self.values or (self.low, self.high)

    @property
    def single(self) -> bool:
        """Whether it has one value, so that there is nothing to choose."""
        return len(self.values) == 1 or (not self.values and self.low == self.high)

    def decode(self, raw: Any) -> Any:
        """The knob's value for what Optuna suggested."""
        if self.values:
            return self.values[raw] if self.type == "ordinal" else raw
        if self.step is not None:
            raw = float(f"{self.low + round((raw - self.low) / self.step) * self.step:.10g}")
        elif self.type == "float":
            raw = float(f"{raw:.4g}")
        raw = min(max(raw, self.low), self.high)
        return int(raw) if self.type == "int" else float(raw)

    def encode(self, value: Any) -> Any:
        """What Optuna is told for a knob's value; raises `ConfigError` for one outside the entry."""
        value = _worded(self.name, value)
        if self.values and value in self.values:
            return self.values.index(value) if self.type == "ordinal" else value
        number = not self.values and isinstance(value, int | float) and self.low <= value <= self.high
        if number and (self.step is None or math.isclose(self.decode(value), value, rel_tol=1e-9)):
            return value
        legal = ", ".join(map(_show, self.values)) or f"{self.low:g} .. {self.high:g}"
        legal += f" in steps of {self.step:g}" if self.step else ""
        raise ConfigError(f"{self.name}={_show(value)} is outside its search space ({legal}); move it or widen the space")

    def suggest(self, trial: BaseTrial) -> Any:
        """Ask an Optuna trial for it: `distribution`, define-by-run."""
        if self.type == "ordinal":
            return trial.suggest_int(self.name, 0, len(self.values) - 1)
        if self.type == "choice":
            return trial.suggest_categorical(self.name, self.values)
        if self.type == "int":
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def distribution(self) -> BaseDistribution:
        """How Optuna sees it."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.type == "ordinal":
            return IntDistribution(0, len(self.values) - 1)
        if self.type == "choice":
            return CategoricalDistribution(self.values)
        if self.type == "int":
            return IntDistribution(int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return FloatDistribution(self.low, self.high, step=self.step, log=self.log)

    def as_config(self) -> dict[str, Any]:
        """As in YAML."""
        raw: dict[str, Any] = {"type": self.type}
        raw |= {"values": list(self.values)} if self.values else {"low": self.low, "high": self.high, "log": self.log}
        raw |= {} if self.step is None else {"step": self.step}
        return raw | ({"when": {parent: list(legal) for parent, legal in self.when}} if self.when else {})

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
    """The knobs that move (`entries`, a knob behind those that its condition names) and those that are held (`fixed`)."""

    entries: tuple[Entry, ...]
    fixed: Mapping[str, Any]
    footprint: Callable[[Knobs], Any] | None = field(default=None, compare=False)  # the model's: what has an effect on it

    @property
    def flat(self) -> bool:
        """Whether no knob has a condition."""
        return not any(e.when for e in self.entries)

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Knob values for Optuna's parameters, with the fixed ones and without those that could have no effect. A knob whose
        condition does not hold needs no parameter and gets no value."""
        return effective({**self.fixed, **self._walk(lambda e: _given(e, params))[1]}, self.footprint)

    def params(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters for knob values; a knob that is not given is at its default, or the nearest to it. Raises
        `ConfigError` for a value outside the space, and for one of a knob whose condition does not hold."""
        for name in values:
            self.entry(name)
        params, got = self._walk(lambda e: _nearest(e, values))
        for name in sorted(set(values) - set(params)):
            unmet = [(k, v) for k, v in self.entry(name).when if k not in got or got[k] not in v]
            rule = " and ".join(f"{k}={'|'.join(map(_show, v))}" for k, v in unmet)
            raise ConfigError(f"{name}={_show(values[name])} exists only with {rule}; set that too or leave {name} out")
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
        """Ask an Optuna trial for the knobs that exist, one after the other; their values, as `values` gives them."""
        return self.values(self._walk(lambda e: e.suggest(trial))[0])

    def distributions(self) -> dict[str, BaseDistribution]:
        """How Optuna sees the entries, those with a condition too."""
        return {e.name: e.distribution() for e in self.entries}

    def from_row(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a Parquet row that `params` can take back: those of the space, without what had no effect. A value
        that the space holds under another name of the same (`all` layers, their number) has the one that it holds."""
        live = effective({k: row[k] for k in (*self.fixed, *(e.name for e in self.entries))}, self.footprint)
        held = dict(live)
        for e in (e for e in self.entries if e.name in held and not _holds(e, held[e.name])):
            same = (v for v in e.values or e.ends() if effective({**held, e.name: v}, self.footprint) == live)
            held[e.name] = next(same, held[e.name])
        return {k: held[k] for k in self.active(held) if k in held}

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
        points = [self._walk(lambda e, v=values: _nearest(e, v))[0] for values in ({}, *corners)]  # type: ignore[misc]
        seen = {canonical(self.values(p)): p for p in reversed(points)}
        return [p for p in points if seen[canonical(self.values(p))] is p]

    def as_dict(self) -> dict[str, Any]:
        """The entries in plain values, for the manifest and the fingerprint."""
        return {e.name: e.as_config() for e in self.entries}

    def as_config(self) -> dict[str, Any]:
        """Entries and fixed knobs in plain values, from which `space_from_config` makes the same space again."""
        return {**self.as_dict(), **self.fixed}

    def widen(
        self, name: str, low: float | None = None, high: float | None = None, values: Sequence[Any] | None = None
    ) -> Space:
        """A range that goes beyond the old one, or a list with all the old values and more. Raises `ConfigError`."""
        return self._resized("widen", name, low, high, values)

    def narrow(
        self, name: str, low: float | None = None, high: float | None = None, values: Sequence[Any] | None = None
    ) -> Space:
        """A part of the old range, or some of the old values. Raises `ConfigError` if it is not within, or empty."""
        return self._resized("narrow", name, low, high, values)

    def fix(self, name: str, value: Any) -> Space:
        """The knob held at `value`; one with a condition keeps it, and has this one value."""
        entry = self.entry(name)
        if isinstance(value, list | tuple | Mapping):
            raise ConfigError(f"{name}={_show(value)} is not a value of a knob; give a number or a word")
        raw = {"type": "ordinal", "values": [value], "when": entry.as_config().get("when")} if entry.when else value
        space = self._with(name, raw)
        if name == "cache_gb" and value is None:
            raise ConfigError("cache_gb cannot be unset: without it nothing is streamed; fix it at a size")
        return space

    def drop(self, name: str) -> Space:
        """The knob held at its default."""
        return self.fix(name, Knobs().as_dict()[name])

    def _resized(
        self, kind: str, name: str, low: float | None, high: float | None, values: Sequence[Any] | None
    ) -> Space:
        """Another range or list for an entry. A step keeps its grid: an end between two steps moves inwards."""
        entry = self.entry(name)
        if entry.values:
            if low is not None or high is not None or values is None:
                raise ConfigError(f"{name} has values, no range; {kind} it with some of: {_list(entry.values)}")
            given: dict[str, Any] = {"values": values}
            if kind == "narrow" and isinstance(values, list | tuple):  # the old order stays
                kept = [entry.decode(entry.encode(v)) for v in values if not isinstance(v, list | dict)]
                given = {"values": [v for v in entry.values if v in kept]} if len(kept) == len(values) else given
        else:
            if values is not None:
                raise ConfigError(f"{name} is a range, it has no list of values; {kind} it with low and high")
            ends = [entry.low if low is None else low, entry.high if high is None else high]
            if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in ends):
                raise ConfigError(f"{name}: {_list(ends)} are not two numbers; give low and high")
            if entry.step:
                ends[0] = entry.low + math.ceil((ends[0] - entry.low) / entry.step - 1e-9) * entry.step
                ends[0] = round(ends[0]) if entry.type == "int" else float(f"{ends[0]:.10g}")
            if ends[0] >= ends[1]:
                raise ConfigError(f"{name}: {_list(ends)} leaves nothing to choose; fix it instead")
            given = {"low": ends[0], "high": ends[1]}
        space = self._with(name, entry.as_config() | given)
        new = space.entry(name)
        outer, inner = (new, entry) if kind == "widen" else (entry, new)
        within = set(inner.values) < set(outer.values) if entry.values else _inside(inner, outer)
        if not within:
            remedy = "keep all it has and add to it" if kind == "widen" else "keep a part of it"
            raise ConfigError(f"{name}: {_list(new.span)} does not {kind} {_list(entry.span)}; {remedy}")
        if len(new.values) == 1:
            raise ConfigError(f"{name}: {_list(new.values)} leaves nothing to choose; fix it instead")
        return space

    def _with(self, name: str, raw: Any) -> Space:
        """Another space, checked like a user's; knobs whose condition can hold no more are gone."""
        config = self.as_config() | {name: raw}
        return dataclasses.replace(_space(config, {}, None, never_refused=False), footprint=self.footprint)

    def _walk(self, raw: Callable[[Entry], Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Optuna's parameters and the knobs' values of all entries that exist, if `raw` gives each its parameter."""
        params: dict[str, Any] = {}
        values: dict[str, Any] = {}
        for e in self.entries:
            if e.exists(values):
                params[e.name] = raw(e)
                values[e.name] = e.decode(params[e.name])
        return params, values


def canonical(values: Mapping[str, Any]) -> str:
    """One text for one setting."""
    return json.dumps(dict(values), sort_keys=True)


def space_from_config(
    config: Mapping[str, Any], fixed: Mapping[str, Any], bounds: Mapping[str, float] | None = None
) -> Space:
    """Read and check `search_space` and `knobs`. `bounds` has the figures of machine and model that bounds may name
    (`BOUNDS`). Raises `ConfigError` with one line that names entry, limit and remedy."""
    return _space(config, fixed, bounds, never_refused=True)


def _space(
    config: Mapping[str, Any], fixed: Mapping[str, Any], bounds: Mapping[str, float] | None, never_refused: bool
) -> Space:
    for place, known in (("knobs", fixed), ("search_space", config)):
        for name in known:
            if line := removed(str(name)):
                raise ConfigError(f"{place}.{name}: {line}")
            if name not in Knobs.names():
                raise ConfigError(f"{place}.{name}: {name} is not a knob; {did_you_mean(str(name), list(Knobs.names()))}")
    for name in sorted(set(fixed) & set(config)):
        raise ConfigError(f"knobs.{name}={fixed[name]} is in the search space too; fix it with search_space.{name}=VALUE")
    held = {name: _check(f"knobs.{name}", name, value) for name, value in fixed.items()}
    entries: dict[str, Entry] = {}
    for name, given in config.items():
        if isinstance(given, Mapping | list | tuple):
            entries[name] = _entry(name, given if isinstance(given, Mapping) else _short(name, given), bounds)
        else:
            held[name] = _check(f"search_space.{name}", name, given)
    space = Space(_conditioned(entries, held, never_refused), held)
    if not space.entries:
        raise ConfigError("search_space has no knob that moves; choose one with search_space=NAME")
    if all(e.single for e in space.entries):
        names = ", ".join(e.name for e in space.entries)
        raise ConfigError(f"search_space leaves nothing to choose: {names} can have one value each; widen one")
    for params in space.anchors():
        _knobs("search_space", space.values(params))
    return space


def _conditioned(entries: Mapping[str, Entry], held: Mapping[str, Any], never_refused: bool) -> tuple[Entry, ...]:
    """The entries that can exist, each behind those that its condition names. What a held knob decides is decided here."""
    for entry in entries.values():
        for parent, _ in entry.when:
            if parent not in {**entries, **held}:
                raise ConfigError(
                    f"search_space.{entry.name}.when.{parent}: {parent} is neither in the search space nor fixed; "
                    "add it or drop the condition"
                )
    kept: dict[str, Entry] = {}
    never: set[str] = set()
    waiting = dict(entries)
    while waiting:
        ready = [e for e in waiting.values() if not any(parent in waiting for parent, _ in e.when)]
        if not ready:
            circle = [n for n in waiting if any(n in dict(e.when) for e in waiting.values())]
            raise ConfigError(f"search_space: the conditions of {' and '.join(circle)} go in a circle; drop one's when")
        entry = ready[0]
        del waiting[entry.name]
        when = []
        for parent, legal in entry.when:
            possible = tuple(v for v in legal if parent in kept and _holds(kept[parent], v))
            if parent in kept and possible:
                when.append((parent, possible))
            elif parent not in held or held[parent] not in legal:
                never.add(entry.name)
            if parent in kept and not possible and never_refused:
                raise ConfigError(
                    f"search_space.{entry.name}.when.{parent}={'|'.join(map(_show, legal))} never holds: {parent} has no "
                    f"such value in the search space; give it one or drop {entry.name}"
                )
        if entry.name not in never:
            kept[entry.name] = dataclasses.replace(entry, when=tuple(when))
    return tuple(kept.values())


def _holds(entry: Entry, value: Any) -> bool:
    try:
        entry.encode(value)
    except ConfigError:
        return False
    return True


def _short(name: str, raw: Sequence[Any]) -> dict[str, Any]:
    """`[low, high]` in full."""
    if len(raw) != 2 or not all(isinstance(b, int | float | str) and not isinstance(b, bool) for b in raw):
        given = _show(list(raw))
        raise ConfigError(
            f"search_space.{name}={given} is not a range [low, high]; write {{type: ordinal, values: {given}}} for values"
        )
    return {"type": "int" if name in WHOLE else "float", "low": raw[0], "high": raw[1]}


def _entry(name: str, raw: Mapping[str, Any], bounds: Mapping[str, float] | None) -> Entry:
    where, kind = f"search_space.{name}", raw.get("type")
    if kind not in FIELDS:
        raise ConfigError(f"{where}.type={_show(kind)} is unknown; choose one of: {', '.join(FIELDS)}")
    needed, optional = FIELDS[kind]
    given = set(raw) - {"type"}
    for key in sorted(needed - given):
        raise ConfigError(f"{where} lacks {key}; a {kind} needs {' and '.join(sorted(needed, reverse=True))}")
    for key in sorted(given - needed - optional):
        raise ConfigError(f"{where}.{key} is not a key of a {kind}; {did_you_mean(key, sorted(needed | optional))}")
    when = _when(where, raw.get("when"))
    if "values" in needed:
        values = raw["values"]
        if not isinstance(values, list | tuple) or not values or any(isinstance(v, list | dict) for v in values):
            raise ConfigError(f"{where}.values={_show(values)} is not a list of values; write [a, b, c]")
        legal = tuple(_check(where, name, v) for v in values)
        if len(set(legal)) < len(legal):
            raise ConfigError(f"{where}.values={_show(list(values))} holds a value twice; drop one")
        return Entry(name, kind, values=legal, when=when)
    if kind == "float" and name in WHOLE:
        raise ConfigError(f"{where}.type=float: {name} is a whole number; use int")
    low, low_shown = _bound(f"{where}.low", raw["low"], kind, bounds, up=True)
    high, high_shown = _bound(f"{where}.high", raw["high"], kind, bounds, up=False)
    log, step = raw.get("log", False), raw.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log={_show(log)} is neither true nor false")
    if low > high:
        raise ConfigError(f"{where}.low={low_shown} is above its high={high_shown}; lower one or raise the other")
    if log and low <= 0:
        raise ConfigError(f"{where}.low={low_shown} has no logarithm; raise it above 0 or drop log")
    if step is not None:
        if isinstance(step, bool) or not isinstance(step, int if kind == "int" else int | float) or not 0 < step < math.inf:
            raise ConfigError(f"{where}.step={_show(step)} is not a{' whole' if kind == 'int' else ''} number above 0")
        if log:
            raise ConfigError(f"{where}.step={step:g} does not go with log; drop one of the two")
        if step > high - low > 0:
            raise ConfigError(f"{where}.step={step:g} is longer than its range {low_shown} .. {high_shown}; shorten it")
        high = float(f"{low + math.floor((high - low) / step + 1e-9) * step:.10g}")
        high = int(high) if kind == "int" else high
    inside = range(int(low), int(high) + 1, int(step or 1)) if kind == "int" else ()
    for value, shown in ((low, low_shown), (high, high_shown), *((v, v) for v in inside[: 1 << 10])):
        _check(where if shown in (f"{value:g}", value) else f"{where}: {shown}", name, value)
    return Entry(name, kind, low=low, high=high, log=log, step=step, when=when)


def _bound(where: str, raw: Any, kind: str, bounds: Mapping[str, float] | None, up: bool) -> tuple[float, str]:
    """A bound's number and how to show it. One that was computed is rounded into the range: to four digits, or a whole."""
    if isinstance(raw, str):
        match = BOUND.fullmatch(raw.strip())
        if not match or match[2] not in BOUNDS:
            hint = did_you_mean(match[2], list(BOUNDS)) if match else f"names are {', '.join(BOUNDS)}"
            raise ConfigError(f"{where}={raw} is not a number, a known name or NUMBER * NAME; {hint}")
        if bounds is None or match[2] not in bounds:
            raise ConfigError(f"{where}={raw}: {match[2]} is not known without a machine and a model; give a number")
        exact = float(match[1] or 1) * bounds[match[2]]
        number = _rounded(exact, up, whole=kind == "int")
        return number, f"{raw} ({number:g})"
    if isinstance(raw, bool) or not isinstance(raw, int if kind == "int" else int | float) or not math.isfinite(raw):
        raise ConfigError(f"{where}={_show(raw)} is not a{' whole' if kind == 'int' else ''} number")
    return raw, f"{raw:g}"


def _rounded(number: float, up: bool, whole: bool) -> float:
    toward = math.ceil if up else math.floor
    if whole:
        return toward(number)
    unit = 10.0 ** (math.floor(math.log10(abs(number))) - 3) if number else 1.0
    nearest = round(number / unit)
    steps = nearest if math.isclose(nearest, number / unit, rel_tol=1e-9) else toward(number / unit)
    return float(f"{steps * unit:.4g}")


def _when(where: str, raw: Any) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    if raw is None:
        return ()
    if not isinstance(raw, Mapping) or not raw:
        raise ConfigError(f"{where}.when={_show(raw)} is not a condition; write when: {{KNOB: VALUE}} or {{KNOB: [A, B]}}")
    conditions = []
    for parent, legal in raw.items():
        if line := removed(str(parent)):
            raise ConfigError(f"{where}.when.{parent}: {line}")
        if parent not in Knobs.names():
            raise ConfigError(
                f"{where}.when.{parent}: {parent} is not a knob; {did_you_mean(str(parent), list(Knobs.names()))}"
            )
        values = legal if isinstance(legal, list | tuple) else [legal]
        if not values or any(isinstance(v, list | Mapping) for v in values):
            raise ConfigError(f"{where}.when.{parent}={_show(legal)} is neither a value nor a list of values")
        conditions.append((str(parent), tuple(_check(f"{where}.when.{parent}", parent, v) for v in values)))
    return tuple(conditions)


def _check(where: str, name: str, value: Any) -> Any:
    """`value` as the knob has it. Raises unless `name=value` is legal for some setting of the other knobs."""
    return getattr(_knobs(where, {**enabling(name), name: value}), name)


def _knobs(where: str, values: Mapping[str, Any]) -> Knobs:
    try:
        return Knobs.from_mapping(values)
    except KnobError as e:
        raise ConfigError(f"{where}: {e}") from e


def _given(entry: Entry, params: Mapping[str, Any]) -> Any:
    if entry.name not in params:
        raise ConfigError(f"a setting lacks {entry.name}, which its other knobs call for; give it")
    return params[entry.name]


def _nearest(entry: Entry, values: Mapping[str, Any]) -> Any:
    """An entry's parameter for these values, where it is not given for its default or the nearest to that."""
    return entry.encode(values[entry.name] if entry.name in values else entry.nearest(Knobs().as_dict()[entry.name]))


def _inside(inner: Entry, outer: Entry) -> bool:
    """Whether a range is a part of another."""
    return outer.low <= inner.low < inner.high <= outer.high and inner.span != outer.span


def _list(values: Sequence[Any]) -> str:
    return "[" + ", ".join(f"{v:g}" if isinstance(v, float) else _show(v) for v in values) + "]"


def _worded(name: str, value: Any) -> Any:
    """A value that has a name, e.g. sync_window=all, as the number that the knob has."""
    return WORDS.get(name, {}).get(value, value) if isinstance(value, str) else value


def _show(value: Any) -> str:
    return "null" if value is None else str(value)
