"""Resizing: another space with one knob widened, narrowed, fixed or dropped.

The new space is parsed like a user's, so that conditions are resolved again: a knob whose condition can no longer hold is
not in it. All functions raise `ConfigError` for a change that is not legal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from engine import Knobs
from harness import ConfigError

from .entry import Entry, show
from .parse import build_space
from .space import Space


def widen(
    space: Space, name: str, low: float | None = None, high: float | None = None, values: Sequence[Any] | None = None
) -> Space:
    """A range that contains the old one, or a list with all old values and more."""
    return _resized(space, "widen", name, low, high, values)


def narrow(
    space: Space, name: str, low: float | None = None, high: float | None = None, values: Sequence[Any] | None = None
) -> Space:
    """A part of the old range, or some of the old values."""
    return _resized(space, "narrow", name, low, high, values)


def fix(space: Space, name: str, value: Any) -> Space:
    """The knob fixed at `value`. A knob with a condition keeps it and has this one value."""
    entry = space.entry(name)
    if isinstance(value, list | tuple | Mapping):
        raise ConfigError(f"{name}={show(value)} is not a value of a knob; give a number or a word")
    raw = {"type": "ordinal", "values": [value], "when": entry.as_config().get("when")} if entry.when else value
    fixed = _replaced(space, name, raw)
    if name == "cache_gb" and value is None:
        raise ConfigError("cache_gb cannot be unset: without it nothing is streamed; fix it at a size")
    return fixed


def drop(space: Space, name: str) -> Space:
    """The knob fixed at its default."""
    return fix(space, name, Knobs().as_dict()[name])


def _resized(
    space: Space, kind: str, name: str, low: float | None, high: float | None, values: Sequence[Any] | None
) -> Space:
    """The space with another range or list of an entry. A range with a step keeps its grid: its ends move inwards to it."""
    entry = space.entry(name)
    if entry.values:
        if low is not None or high is not None or values is None:
            raise ConfigError(f"{name} has a list of values, not a range; {kind} it with some of: {_list(entry.values)}")
        given: dict[str, Any] = {"values": values}
        if kind == "narrow" and isinstance(values, list | tuple):  # in the old order
            kept = [entry.decode(entry.encode(v)) for v in values if not isinstance(v, list | dict)]
            given = {"values": [v for v in entry.values if v in kept]} if len(kept) == len(values) else given
    else:
        if values is not None:
            raise ConfigError(f"{name} is a range, not a list of values; {kind} it with low and high")
        ends = [entry.low if low is None else low, entry.high if high is None else high]
        if any(isinstance(v, bool) or not isinstance(v, int | float) or not math.isfinite(v) for v in ends):
            raise ConfigError(f"{name}: {_list(ends)} are not two numbers; give low and high")
        if entry.step:
            ends[0] = entry.low + math.ceil((ends[0] - entry.low) / entry.step - 1e-9) * entry.step
            ends[0] = round(ends[0]) if entry.type == "int" else float(f"{ends[0]:.10g}")
        if ends[0] >= ends[1]:
            raise ConfigError(f"{name}: {_list(ends)} leaves one value; fix it instead")
        given = {"low": ends[0], "high": ends[1]}
    resized = _replaced(space, name, entry.as_config() | given)
    new = resized.entry(name)
    outer, inner = (new, entry) if kind == "widen" else (entry, new)
    within = set(inner.values) < set(outer.values) if entry.values else _inside(inner, outer)
    if not within:
        remedy = "keep all its values and add to them" if kind == "widen" else "keep a part of them"
        raise ConfigError(f"{name}: {_list(new.span)} does not {kind} {_list(entry.span)}; {remedy}")
    if len(new.values) == 1:
        raise ConfigError(f"{name}: {_list(new.values)} leaves one value; fix it instead")
    return resized


def _replaced(space: Space, name: str, raw: Any) -> Space:
    """The space with another entry, or a fixed value, for a knob."""
    config = space.as_config() | {name: raw}
    return dataclasses.replace(build_space(config, {}, None, never_refused=False), footprint=space.footprint)


def _inside(inner: Entry, outer: Entry) -> bool:
    """Whether a range is a proper part of another."""
    return outer.low <= inner.low < inner.high <= outer.high and inner.span != outer.span


def _list(values: Sequence[Any]) -> str:
    return "[" + ", ".join(f"{v:g}" if isinstance(v, float) else show(v) for v in values) + "]"
