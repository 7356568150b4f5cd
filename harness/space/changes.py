"""Changes of a search space as data: rounds and external proposers propose them, the journal and round files record them.

    changed(space, raw, legal)    check a change and apply it: the new space and the change
    applied(space, changes)       apply changes that were checked before

Both use `resize.py`, which resolves the conditions again. A knob whose condition can no longer hold is removed, and the
change records it in `gone`. `legal` has the machine's limits of a knob, which are narrower than the knob's own.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.errors import did_you_mean
from harness import ConfigError

from .entry import Entry, shown
from .resize import drop, fix, narrow, widen
from .space import Space

KINDS = ("widen", "narrow", "fix", "drop")
Legal = Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Change:
    """One change of the space. `was` and `now` are (low, high) or a tuple of values; for fix and drop, `now` is one value.

    `gone` has the knobs that can no longer exist after the change.
    """

    kind: str
    knob: str
    was: Any
    now: Any
    evidence: str
    gone: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("was", "now", "gone"):  # JSON has lists for tuples
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))

    def __str__(self) -> str:
        gone = f" (removes {', '.join(self.gone)}: conditions that cannot hold)" if self.gone else ""
        return f"{self.kind} {self.knob}: {shown(self.was)} -> {shown(self.now)}{gone}"


def changed(space: Space, raw: Mapping[str, Any], legal: Legal) -> tuple[Space, Change]:
    """Apply a change given as {kind, knob, and low and/or high | values | value, evidence}: the new space and the change.

    widen and narrow take low and high of a range, or values. fix takes value. drop takes value or, without it, the default.
    Raises `ConfigError` for a malformed or illegal change, and if nothing would be left to choose.
    """
    kind, knob = raw.get("kind"), str(raw.get("knob"))
    if kind not in KINDS:
        raise ConfigError(f"change kind={kind} is unknown; {did_you_mean(str(kind), list(KINDS))}")
    where, held = f"{kind} {knob}", kind in ("fix", "drop")
    entry = _found(where, space, knob)
    keys = ("value",) if held else ("values",) if entry.values else ("low", "high")
    for key in sorted(set(raw) - {"kind", "knob", "evidence", *keys}):
        raise ConfigError(f"{where}: {key} is not a key here; give {' or '.join(sorted(keys))}")
    given = {key: raw[key] for key in keys if key in raw}
    if not given and kind != "drop":
        raise ConfigError(f"{where} lacks {' and '.join(sorted(keys))}; give {'the value' if held else 'the new limits'}")
    if held:
        new = fix(space, knob, *given.values()) if given else drop(space, knob)
        now = new.fixed[knob] if knob in new.fixed else new.entry(knob).values[0]
        _within_legal(where, (now,), legal.get(knob))
    else:
        new = widen(space, knob, **given) if kind == "widen" else narrow(space, knob, **given)
        now = new.entry(knob).span
        _within_legal(where, [v for v in now if v not in entry.span], legal.get(knob))
    left = {e.name for e in new.entries} | {knob}
    gone = tuple(e.name for e in space.entries if e.name not in left)
    return new, Change(kind, knob, entry.span, now, str(raw.get("evidence") or ""), gone)


def applied(space: Space, changes: Sequence[Change]) -> Space:
    """The space after changes that were checked before, applied in order."""
    for change in changes:
        space, _ = changed(space, _raw(change, space), {})
    return space


def still_possible(changes: Sequence[Change], space: Space, legal: Legal) -> list[Change]:
    """The changes that can be applied to `space` in order; it may differ from the space that they were proposed for."""
    found: list[Change] = []
    for change in changes:
        with contextlib.suppress(ConfigError):
            space, made = changed(space, _raw(change, space), legal)
            found.append(made)
    return found


def _raw(change: Change, space: Space) -> dict[str, Any]:
    """A change in the form that `changed` takes. Raises `ConfigError` if its knob does not vary in `space`."""
    entry = _found(f"{change.kind} {change.knob}", space, change.knob)
    raw = {"kind": change.kind, "knob": change.knob, "evidence": change.evidence}
    if change.kind in ("fix", "drop"):
        return raw | {"value": change.now}
    return raw | ({"values": change.now} if entry.values else {"low": change.now[0], "high": change.now[1]})


def _found(where: str, space: Space, knob: str) -> Entry:
    try:
        return space.entry(knob)
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from e


def _within_legal(where: str, values: Sequence[Any], limits: tuple[float, float] | None) -> None:
    low, high = limits or (-math.inf, math.inf)
    for value in values:
        if isinstance(value, int | float) and not low <= value <= high:
            raise ConfigError(f"{where}: {value:g} is outside this machine's limits {low:.4g} .. {high:.4g}; stay inside")
