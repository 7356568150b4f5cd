"""Backend knobs: the knobs of one backend of MLX, where they are refused, and what puts them into effect.

Numbers behind those of Metal are their users', on Macs: +32 to +45 % by gpu_keep_warm. Nothing of this has run on a Mac.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.errors import KnobError
from engine.knobs import BACKENDS, DEFAULTS, Knobs
from engine.model.backend import backend

from .mlx_environment import refuse_late

NAMES = {"metal": "Metal", "cuda": "CUDA"}


def without_effect(values: Mapping[str, Any]) -> list[str]:
    """The knobs that are set in `values` although MLX computes on another backend than theirs."""
    here = backend()
    return [n for n, own in BACKENDS.items() if own != here and values.get(n) not in (None, DEFAULTS[n])]


def refuse_elsewhere(knobs: Knobs) -> None:
    """Raise `KnobError` for a knob of another backend."""
    for name in without_effect(vars(knobs)):
        own = NAMES[BACKENDS[name]]
        raise KnobError(
            f"{knobs.shown(name)} exists only on MLX's {own} backend, and MLX computes on {backend()} here; leave it out"
        )


def refuse_without_effect(knobs: Knobs) -> None:
    """Raise `KnobError` for a knob of another backend, and for one that MLX cannot read any more."""
    refuse_elsewhere(knobs)
    refuse_late(vars(knobs))
