"""Needs: what one knob must be for another to have an effect. They are declared with the knob that has them; what is refused
(`engine.knobs`), what is removed (`engine.effective`) and what makes a value legal follow from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Need:
    """`met(value of knob, own value)` must hold. `like`: a value of `knob` for which it does; `refusal`: the end of the
    line where it does not, `{}` in it the knob and its value. `misses`: the cache may not hold every expert."""

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
    "bits_plan", _is_unset, None, "has no effect with {}, which says every expert's bits; leave one of the two unset")
PREFETCHES = Need(
    "prefetch", lambda kind, _: kind != "off", "stale_gate", "has no effect with prefetch=off; set prefetch=stale_gate")
NO_WINDOW = Need(
    "sync_window", lambda layers, _: layers == 1, 1,
    "has no effect with {}, whose void passes foresee what is needed; set sync_window=1 or prefetch=off")
EACH_LAYER = replace(
    NO_WINDOW, refusal="is not possible with {}, which computes layers before it asks what is cached; set sync_window=1")
# fmt: on
