"""Chain: the model's list of layers, with calls that can be intercepted and repeated.

mlx-lm's models call their layers one after the other and pass the hidden state on. A layer's call can be repeated after its
caches (attention, latent, recurrent) are restored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from engine.errors import KnobError


@dataclass
class Call:
    """One call of a layer, with everything needed to repeat it. `caches` are the caches it changes, with earlier states."""

    layer: Any
    x: mx.array
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    caches: list[tuple[Any, dict[str, Any]]]

    def run(self) -> mx.array:
        return type(self.layer).plain(self.layer, self.x, *self.args, **self.kwargs)

    def restore(self) -> None:
        """Restore the caches to their state before the call."""
        for cache, state in self.caches:
            cache.__dict__.update(_copied(state))


def chain_of(model: nn.Module, paths: Iterable[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return the model's layers in order, and for each of the switches at `paths` the layer that contains it.

    Raises `KnobError` unless all of them are in one list named `layers`.
    """
    modules = dict(model.named_modules())
    layer_of: dict[str, Any] = {}
    prefixes: set[str] = set()
    for path in paths:
        found = re.match(r"(.*\blayers)\.(\d+)\.", path)
        if found is None:
            raise KnobError(f"sync_window is not possible for this model: {path} is in no list of layers; use sync_window=1")
        layer_of[path] = modules[f"{found[1]}.{found[2]}"]
        prefixes.add(found[1])
    if len(prefixes) != 1:
        raise KnobError(
            f"sync_window is not possible for this model: its layers are in {len(prefixes)} lists; use sync_window=1"
        )
    prefix = prefixes.pop()
    numbers = sorted(int(n[len(prefix) + 1 :]) for n in modules if re.fullmatch(re.escape(prefix) + r"\.\d+", n))
    return [modules[f"{prefix}.{n}"] for n in numbers], layer_of


def intercept(layer: Any, call: Callable[[Any, mx.array, tuple[Any, ...], dict[str, Any]], mx.array]) -> None:
    """Replace calls of `layer` by `call(layer, x, args, kwargs)`. Its class becomes a subclass, so all else is unchanged."""
    cls = type(layer)

    def intercepted(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return call(self, x, args, kwargs)

    layer.__class__ = type(cls.__name__, (cls,), {"__call__": intercepted, "plain": cls.__call__})


def snapshots(arguments: list[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the caches among a layer's arguments, each with a shallow copy of its state.

    A shallow copy is enough: mlx-lm's caches replace their arrays or write after `offset`, where the next pass writes again.
    """
    caches = []
    for argument in arguments:
        if hasattr(argument, "__dict__") and hasattr(argument, "state"):
            caches.append((argument, _copied(argument.__dict__)))
            caches += snapshots(list(getattr(argument, "caches", ())))
    return caches


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in state.items()}
