"""Recorder: the routers' choices for a prompt, taken in front of the switches while it is computed.

The same holds as for a trace (`engine.routing.record`): a layer that is computed several times for a pass counts the last
time, and nothing is read back before the pass is evaluated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

ABSENT = -1  # where a layer chooses fewer experts than another


class _Tap(nn.Module):
    """A module in front of a switch, which is hidden from MLX's parameter trees."""

    switch: Any
    ids: mx.array | None

    def __init__(self, switch: Any) -> None:
        super().__init__()
        object.__setattr__(self, "switch", switch)
        object.__setattr__(self, "ids", None)

    def __call__(self, x: mx.array, indices: mx.array) -> Any:
        object.__setattr__(self, "ids", indices)
        return self.switch(x, indices)


class Recorder:
    """The choices of the passes so far, read with `take` after each."""

    def __init__(self, taps: Sequence[_Tap]) -> None:
        self._taps = taps
        self._parts: list[np.ndarray | None] = []

    def take(self, tokens: int) -> None:
        """Read the choices of an evaluated pass over `tokens` tokens."""
        seen = [tap.ids for tap in self._taps]
        for tap in self._taps:
            object.__setattr__(tap, "ids", None)
        if any(ids is None or ids.size != tokens * ids.shape[-1] for ids in seen):
            self._parts.append(None)
            return
        mx.eval(seen)
        found = [np.array(ids).reshape(tokens, -1) for ids in seen]
        part = np.full((tokens, len(found), max(ids.shape[1] for ids in found)), ABSENT, np.int16)
        for layer, ids in enumerate(found):
            part[:, layer, : ids.shape[1]] = ids
        self._parts.append(part)

    @property
    def routing(self) -> np.ndarray | None:
        """int16 [tokens, layers, top-k]; None if a layer did not choose experts for every token once."""
        parts = [part for part in self._parts if part is not None]
        return np.concatenate(parts) if parts and len(parts) == len(self._parts) else None


@contextmanager
def recorded(model: nn.Module, switches: Sequence[str]) -> Iterator[Recorder]:
    """Record what reaches the modules at the paths `switches`, one for each layer with experts."""
    modules = dict(model.named_modules())
    places = []
    for path in switches:
        owner, _, name = path.rpartition(".")
        places.append((modules[owner], name, _Tap(modules[path])))
    try:
        for block, name, tap in places:
            setattr(block, name, tap)
        yield Recorder([tap for *_, tap in places])
    finally:
        for block, name, tap in places:
            setattr(block, name, tap.switch)
