"""Parsing: a search space from its YAML, checked knob by knob before anything runs.

An entry of `search_space` in YAML is one of

    cache_gb: {type: float, low: 12, high: 60, log: true}     also step; int in the same way
    cache_gb: [one_token, 0.75 * memory_gb]                   a range in short; of integers if the knob is one
    sync_window: {type: ordinal, values: [1, 4, all]}         ordered values
    io_mode: {type: choice, values: [buffered, direct]}       values without an order
    prefetch_depth: {type: int, low: 1, high: 4, when: {prefetch: stale_gate}}
    read_threads: 8                                           fixed

`when` names other knobs of the space with a value or a list of values; the knob exists only where all these conditions hold.
A bound is NUMBER, NAME or NUMBER * NAME, or a sum or difference of these, such as `limit_gb - resident`. NAME is a property
of the machine or the model (`BOUNDS`).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine import KnobError, Knobs
from engine.errors import did_you_mean
from engine.knobs import enabling, removed
from harness import ConfigError

from .entry import Entry, show
from .space import Space, holds

FIELDS = {
    "float": ({"low", "high"}, {"log", "step", "when"}),
    "int": ({"low", "high"}, {"log", "step", "when"}),
    "ordinal": ({"values"}, {"when"}),
    "choice": ({"values"}, {"when"}),
}
BOUNDS = {
    "one_token": "GB of the experts that one token uses, as stored",
    "all_experts": "GB of all routed experts, as stored",
    "resident": "GB of the predicted peak without the experts: all other weights, context, activations, process",
    "memory_gb": "GB of memory of the machine",
    "limit_gb": "GB that a trial may use",
    "cores": "logical cores",
}
NUMBER = r"-?\d+(?:\.\d*)?|-?\.\d+"
TERM = re.compile(rf"(?:({NUMBER})\s*\*\s*)?([A-Za-z_]\w*)|({NUMBER})")
SIGN = re.compile(r"\s+([+-])\s+")
WHOLE = {f.name for f in dataclasses.fields(Knobs) if str(f.type).startswith("int")}


def space_from_config(
    config: Mapping[str, Any], fixed: Mapping[str, Any], bounds: Mapping[str, float] | None = None
) -> Space:
    """The space of the configuration's `search_space` and `knobs`, checked.

    `bounds` has the values of the names in `BOUNDS` for this machine and model. Raises `ConfigError` with one line that
    names the entry, the limit and the remedy.
    """
    return build_space(config, fixed, bounds, never_refused=True)


def build_space(
    config: Mapping[str, Any], fixed: Mapping[str, Any], bounds: Mapping[str, float] | None, never_refused: bool
) -> Space:
    """The space of `config`; with `never_refused`, a condition that can never hold is an error, else it drops its knob."""
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
        raise ConfigError("search_space has no knob that varies; choose a space with search_space=NAME")
    if all(e.single for e in space.entries):
        names = ", ".join(e.name for e in space.entries)
        raise ConfigError(f"search_space leaves nothing to choose: {names} can have one value each; widen one")
    for params in space.anchors():
        _knobs("search_space", space.values(params))
    return space


def _conditioned(entries: Mapping[str, Entry], held: Mapping[str, Any], never_refused: bool) -> tuple[Entry, ...]:
    """The entries that can exist, each after those that its condition names. Conditions on fixed knobs are resolved here."""
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
            possible = tuple(v for v in legal if parent in kept and holds(kept[parent], v))
            if parent in kept and possible:
                when.append((parent, possible))
            elif parent not in held or held[parent] not in legal:
                never.add(entry.name)
            if parent in kept and not possible and never_refused:
                raise ConfigError(
                    f"search_space.{entry.name}.when.{parent}={'|'.join(map(show, legal))} never holds: {parent} has no "
                    f"such value in the search space; add the value or drop {entry.name}"
                )
        if entry.name not in never:
            kept[entry.name] = dataclasses.replace(entry, when=tuple(when))
    return tuple(kept.values())


def _short(name: str, raw: Sequence[Any]) -> dict[str, Any]:
    """The full form of `[low, high]`."""
    if len(raw) != 2 or not all(isinstance(b, int | float | str) and not isinstance(b, bool) for b in raw):
        given = show(list(raw))
        raise ConfigError(
            f"search_space.{name}={given} is not a range [low, high]; write {{type: ordinal, values: {given}}} for values"
        )
    return {"type": "int" if name in WHOLE else "float", "low": raw[0], "high": raw[1]}


def _entry(name: str, raw: Mapping[str, Any], bounds: Mapping[str, float] | None) -> Entry:
    where, kind = f"search_space.{name}", raw.get("type")
    if kind not in FIELDS:
        raise ConfigError(f"{where}.type={show(kind)} is unknown; choose one of: {', '.join(FIELDS)}")
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
            raise ConfigError(f"{where}.values={show(values)} is not a list of values; write [a, b, c]")
        legal = tuple(_check(where, name, v) for v in values)
        if len(set(legal)) < len(legal):
            raise ConfigError(f"{where}.values={show(list(values))} holds a value twice; drop one")
        return Entry(name, kind, values=legal, when=when)
    if kind == "float" and name in WHOLE:
        raise ConfigError(f"{where}.type=float: {name} is a whole number; use int")
    low, lowshown = _bound(f"{where}.low", raw["low"], kind, bounds, up=True)
    high, highshown = _bound(f"{where}.high", raw["high"], kind, bounds, up=False)
    log, step = raw.get("log", False), raw.get("step")
    if not isinstance(log, bool):
        raise ConfigError(f"{where}.log={show(log)} is neither true nor false")
    if low > high:
        raise ConfigError(f"{where}.low={lowshown} is above its high={highshown}; lower one or raise the other")
    if log and low <= 0:
        raise ConfigError(f"{where}.low={lowshown} has no logarithm; raise it above 0 or drop log")
    if step is not None:
        if isinstance(step, bool) or not isinstance(step, int if kind == "int" else int | float) or not 0 < step < math.inf:
            raise ConfigError(f"{where}.step={show(step)} is not a{' whole' if kind == 'int' else ''} number above 0")
        if log:
            raise ConfigError(f"{where}.step={step:g} does not go with log; drop one of the two")
        if step > high - low > 0:
            raise ConfigError(f"{where}.step={step:g} is longer than its range {lowshown} .. {highshown}; shorten it")
        high = float(f"{low + math.floor((high - low) / step + 1e-9) * step:.10g}")
        high = int(high) if kind == "int" else high
    inside = range(int(low), int(high) + 1, int(step or 1)) if kind == "int" else ()
    for value, shown in ((low, lowshown), (high, highshown), *((v, v) for v in inside[: 1 << 10])):
        _check(where if shown in (f"{value:g}", value) else f"{where}: {shown}", name, value)
    return Entry(name, kind, low=low, high=high, log=log, step=step, when=when)


def _bound(where: str, raw: Any, kind: str, bounds: Mapping[str, float] | None, up: bool) -> tuple[float, str]:
    """A bound's number and its text. A computed bound is rounded into the range: to four digits, or to an integer."""
    if isinstance(raw, str):
        first, *rest = SIGN.split(raw.strip())
        exact = _term(where, raw, first, bounds)
        for sign, term in zip(rest[::2], rest[1::2], strict=True):
            exact += (1 if sign == "+" else -1) * _term(where, raw, term, bounds)
        number = rounded(exact, up, whole=kind == "int")
        return number, f"{raw} ({number:g})"
    if isinstance(raw, bool) or not isinstance(raw, int if kind == "int" else int | float) or not math.isfinite(raw):
        raise ConfigError(f"{where}={show(raw)} is not a{' whole' if kind == 'int' else ''} number")
    return raw, f"{raw:g}"


def _term(where: str, raw: str, term: str, bounds: Mapping[str, float] | None) -> float:
    match = TERM.fullmatch(term)
    if not match or (match[2] and match[2] not in BOUNDS):
        hint = did_you_mean(match[2], list(BOUNDS)) if match else f"names are {', '.join(BOUNDS)}"
        raise ConfigError(f"{where}={raw} is not a number, a known name, NUMBER * NAME or a sum of these; {hint}")
    if match[3]:
        return float(match[3])
    if bounds is None or match[2] not in bounds:
        raise ConfigError(f"{where}={raw}: {match[2]} is known only with a machine and a model; give a number")
    return float(match[1] or 1) * bounds[match[2]]


def rounded(number: float, up: bool, whole: bool = False) -> float:
    """A computed bound, rounded up or down to four digits, or to an integer."""
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
        raise ConfigError(f"{where}.when={show(raw)} is not a condition; write when: {{KNOB: VALUE}} or {{KNOB: [A, B]}}")
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
            raise ConfigError(f"{where}.when.{parent}={show(legal)} is neither a value nor a list of values")
        conditions.append((str(parent), tuple(_check(f"{where}.when.{parent}", parent, v) for v in values)))
    return tuple(conditions)


def _check(where: str, name: str, value: Any) -> Any:
    """`value` as the knob stores it. Raises `ConfigError` unless some setting of the other knobs allows it."""
    return getattr(_knobs(where, {**enabling(name), name: value}), name)


def _knobs(where: str, values: Mapping[str, Any]) -> Knobs:
    try:
        return Knobs.from_mapping(values)
    except KnobError as e:
        raise ConfigError(f"{where}: {e}") from e
