"""Checks of published measurements: every field is in its unit and range, and every shape is known."""

from __future__ import annotations

import dataclasses
from typing import Any

from engine.errors import HeadraceError, did_you_mean
from engine.shapes.library import names

from .published import COMPUTES, KINDS, Computer, Measured

POSITIVE = (
    "bits", "tokens_per_s", "cache_gb", "slots", "memory_used_gb", "experts_gb", "read_gb_a_token", "top_k", "memory_gb",
    "gpu_memory_gb", "ssd_gbps",
)  # fmt: skip
NAMED = {"shape": names(), "kind": KINDS, "compute": COMPUTES}


def measured(content: Any, place: str) -> Measured:
    """The measurement that an entry of a file describes; `place` names the entry. Raises `HeadraceError`."""
    if not isinstance(content, dict) or not isinstance(content.get("machine"), dict):
        raise HeadraceError(f"{place} is no table with a table `machine`; write it like the other entries")
    return _made(Measured, {**content, "machine": _made(Computer, content["machine"], place)}, place)


def _made(kind: Any, content: dict[str, Any], place: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in content:
        if name not in fields:
            raise HeadraceError(f"{place} has the unknown field {name}; {did_you_mean(name, [*fields])}")
    for name, field in fields.items():
        if name not in content and field.default is dataclasses.MISSING:
            raise HeadraceError(f"{place} lacks {name}; add it")
    for name, value in content.items():
        _check(name, value, place)
    return kind(**content)


def _check(name: str, value: Any, place: str) -> None:
    if name in POSITIVE and not (type(value) in (int, float) and 0 < value < float("inf")):
        raise HeadraceError(f"{place}: {name}={value!r} is no positive number; correct it, or leave it out if it is unknown")
    if name == "hit_rate" and not (type(value) in (int, float) and 0 <= value <= 1):
        raise HeadraceError(f"{place}: hit_rate={value!r} is not between 0 and 1; write 73 % as 0.73")
    if name in NAMED and value not in NAMED[name]:
        raise HeadraceError(f"{place}: {name}={value!r} is unknown; {did_you_mean(str(value), [*NAMED[name]])}")
    if name == "source" and not str(value).startswith("https://"):
        raise HeadraceError(f"{place}: source={value!r} is no address; a measurement without one does not belong here")
