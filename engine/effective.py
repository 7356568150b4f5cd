"""Effective settings: reduces a setting to the knobs that have an effect, so that equal runs have equal settings.

Without a model, knobs with unmet needs are removed, and two widths of which one covers all experts become one. With the
model's `footprint(knobs)`, values equal to the checkpoint's are unset, and knobs that need misses are removed if the cache
holds every expert. Figures that a footprint lacks are ignored; engines of other makers need not provide any.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from engine.knobs import BACKENDS, CACHE_DEPENDENT, DEFAULTS, LOSSY, NEEDS_MISSES, WORDS, Knobs, idle

WIDTHS = tuple(n for n in LOSSY if n not in (*CACHE_DEPENDENT, "top_k", "resident_bits"))  # knobs of the experts' widths


def effective(values: Mapping[str, Any], footprint: Callable[[Knobs], Any] | None = None) -> dict[str, Any]:
    """`values` without those that have no effect, in the simplest equivalent form. No name is added; None stands for a
    knob's default. `Knobs` accepts the result."""
    if footprint is None:
        given = tuple((name, type(value), value) for name, value in values.items())
        try:
            return dict(_without_model(given))
        except TypeError:  # a list, which no knob accepts: `Knobs` refuses it
            return dict(_without_model.__wrapped__(given))
    model = footprint(Knobs())
    kept = _one_width(dict(values), getattr(model, "expert_bits", None))
    _as_in_model(kept, model)
    kept = _without_idle(kept)
    if kept.get("cache_gb") is not None:
        widths = {name: kept[name] for name in WIDTHS if kept.get(name) is not None}
        if 0 < footprint(Knobs.from_mapping(widths)).all_experts_gb <= kept["cache_gb"]:  # 0: the engine does not report it
            kept = _without_idle({k: v for k, v in kept.items() if k not in NEEDS_MISSES})
    return kept


@functools.lru_cache(maxsize=1 << 14)  # a report of thousands of trials asks for each setting several times
def _without_model(values: tuple[tuple[str, type, Any], ...]) -> tuple[tuple[str, Any], ...]:
    """`effective` of (name, type, value) without a model. The type is part of the key: 4 and 4.0 are equal."""
    return tuple(_without_idle(_one_width({name: value for name, _, value in values}, None)).items())


def _one_width(kept: dict[str, Any], stored: int | None) -> dict[str, Any]:
    """Unset widths equal to the stored one, and merge two widths of which one covers all experts."""
    bits, cold, share = kept.get("expert_bits"), kept.get("cold_bits"), kept.get("hot_share")
    if cold is not None:
        if cold > (bits or math.inf) or cold == (bits or stored) or share == 1:
            kept["cold_bits"] = None  # all experts are hot
        elif share == 0 and "expert_bits" in kept:
            kept["expert_bits"], kept["cold_bits"] = cold, None
    if stored is not None and kept.get("expert_bits") == stored:
        kept["expert_bits"] = None
    return kept


def _as_in_model(kept: dict[str, Any], model: Any) -> None:
    """Unset values equal to the model's and knobs of another backend, and limit layer counts to the model's layers."""
    if backend := getattr(model, "backend", None):
        for name, own in BACKENDS.items():
            if own != backend:
                kept.pop(name, None)
    layers, top_k = (getattr(model, name, None) for name in ("moe_layers", "top_k"))
    if layers and (kept.get("sync_window") or 0) >= max(2, layers):
        kept["sync_window"] = WORDS["sync_window"]["all"]
    if layers and (kept.get("prefetch_depth") or 0) >= layers:
        kept["prefetch_depth"] = max(1, layers - 1)
    if top_k and kept.get("top_k") == top_k:
        kept["top_k"] = None


def _without_idle(kept: dict[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in kept.items() if value is not None}
    without = {*idle({**DEFAULTS, **given}), *({"cache_gb"} - given.keys())}
    return {name: value for name, value in kept.items() if name not in without}
