"""Metal knobs: where they are refused, and what puts them into effect.

Numbers behind them are their users', on Macs: +32 to +45 % by gpu_keep_warm. Nothing of this has run on a Mac.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import KnobError
from engine.knobs import DEFAULTS, METAL, Knobs
from engine.model.backend import backend

from .mlx_environment import refuse_late


def without_effect(values: Mapping[str, Any]) -> list[str]:
    """The Metal knobs that are set in `values` although MLX computes on another backend."""
    return [] if backend() == "metal" else [n for n in METAL if values.get(n) not in (None, DEFAULTS[n])]


def refuse_elsewhere(knobs: Knobs) -> None:
    """Raise `KnobError` for a Metal knob on another backend."""
    for name in without_effect(vars(knobs)):
        raise KnobError(
            f"{knobs.shown(name)} exists only on MLX's Metal backend, and MLX computes on {backend()} here; leave it out"
        )


def refuse_without_effect(knobs: Knobs) -> None:
    """Raise `KnobError` for a Metal knob on another backend, and for one that MLX cannot read any more."""
    refuse_elsewhere(knobs)
    refuse_late(vars(knobs))
