"""Needs: conditions on one knob without which another has no effect.

Each knob declares its needs. From them follow the settings that `engine.knobs` refuses, the knobs that `engine.effective`
removes, and the conditions in a search space.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Need:
    """A condition on `knob`: `met(value of knob, own value)` must be true.

    `like`: a value of `knob` that meets it. `refusal`: the end of the error message; `{}` stands for the knob and its value.
    `misses`: the need also requires a cache that does not hold every expert.
    """

    knob: str
    met: Callable[[Any, Any], bool]
    like: Any
    refusal: str
    misses: bool = False


def _is_set(value: Any, _: Any) -> bool:
    return value is not None


def _is_unset(value: Any, _: Any) -> bool:
    return not value


# fmt: off
STREAMS = Need("cache_gb", _is_set, 1.0, "has no effect while every expert is resident; set cache_gb to stream")
MISSES = replace(STREAMS, misses=True)
COLD = Need("cold_bits", _is_set, 2, "has no effect without cold_bits; set cold_bits as well")
NO_PLAN = Need(
    "bits_plan", _is_unset, None, "has no effect with {}, which sets the bits of every expert; unset one of the two")
PREFETCHES = Need(
    "prefetch", lambda kind, _: kind != "off", "stale_gate", "has no effect with prefetch=off; set prefetch=stale_gate")
NO_WINDOW = Need(
    "sync_window", lambda layers, _: layers == 1, 1,
    "has no effect with {}, whose rejected passes predict the experts already; set sync_window=1 or prefetch=off")
EACH_LAYER = replace(
    NO_WINDOW, refusal="is not possible with {}, which computes layers before it checks the cache; set sync_window=1")
# fmt: on
