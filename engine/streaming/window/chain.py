"""Chain: the model's list of layers, with calls that can be intercepted and repeated.

mlx-lm's models call their layers one after the other and pass the hidden state on. A layer's call can be repeated after its
caches (attention, latent, recurrent) are restored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.cache
from mlx_lm.models.cache import make_prompt_cache

from engine.errors import KnobError
from engine.model.switches import LAYER

WRITTEN_AGAIN = ("keys", "values")


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
            cache.__dict__.clear()
            cache.__dict__.update(_copied(cache, state))


def chain_of(model: nn.Module, paths: Iterable[str]) -> tuple[list[Any], dict[str, Any]]:
    """Return the model's layers in order, and for each of the switches at `paths` the layer that contains it.

    Raises `KnobError` unless all of them are in one list.
    """
    modules = dict(model.named_modules())
    layer_of: dict[str, Any] = {}
    prefixes: set[str] = set()
    for path in paths:
        found = LAYER.match(path)
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


def check_plain(model: nn.Module, paths: Iterable[str]) -> None:
    """Raise `KnobError` unless each layer passes its output on to the next unchanged, as windows need it.

    `model` is the model as mlx-lm has opened it, with lazy weights; nothing is computed. Layers that return a tuple, share
    keys and values, or sum earlier layers' outputs are not a plain chain.
    """
    chain, _ = chain_of(model, paths)
    classes = [type(layer) for layer in chain]
    passed_on: Any = None

    def call(layer: Any, x: mx.array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        nonlocal passed_on
        if layer is not chain[0] and x is not passed_on:
            raise not_plain(layer)
        passed_on = type(layer).plain(layer, x, *args, **kwargs)
        return cast(mx.array, passed_on)

    for layer in chain:
        intercept(layer, call)
    try:
        model(mx.array([[0]]), cache=make_prompt_cache(model))
    finally:
        for layer, cls in zip(chain, classes, strict=True):
            layer.__class__ = cls


def not_plain(layer: Any) -> KnobError:
    """Return the error for a model whose layers are more than a chain."""
    return KnobError(
        f"sync_window is not possible for this model: {type(layer).__name__} is not in a plain chain; use sync_window=1"
    )


def intercept(layer: Any, call: Callable[[Any, mx.array, tuple[Any, ...], dict[str, Any]], mx.array]) -> None:
    """Replace calls of `layer` by `call(layer, x, args, kwargs)`. Its class becomes a subclass, so all else is unchanged."""
    cls = type(layer)

    def intercepted(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return call(self, x, args, kwargs)

    layer.__class__ = type(cls.__name__, (cls,), {"__call__": intercepted, "plain": cls.__call__})


def snapshots(arguments: list[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """Return the caches among a layer's arguments, also inside lists and other caches, each with a copy of its state.

    mlx-lm's caches change arrays in place (`left_padding -= 1`), which changes the object that a shallow copy shares. The
    copy therefore has an `mx.array` object of its own for each array; both share the memory until one of them changes.
    """
    caches = []
    for argument in arguments:
        if isinstance(argument, list | tuple):
            caches += snapshots(list(argument))
        elif hasattr(argument, "__dict__") and hasattr(argument, "state"):
            caches.append((argument, _copied(argument, argument.__dict__)))
            caches += snapshots(list(getattr(argument, "caches", ())))
    return caches


def _copied(cache: Any, state: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a cache's attributes.

    A second object for keys and values would make MLX copy all of them at the next write. mlx-lm's caches write them only
    at the position in the restored state, where the repeated call writes again, so their objects are shared.
    """
    shared = WRITTEN_AGAIN if type(cache).__module__ == mlx_lm.models.cache.__name__ else ()
    return {name: _container(value) if name in shared else _own(value) for name, value in state.items()}


def _own(value: Any) -> Any:
    """Return `value` with new containers and new array objects."""
    if isinstance(value, mx.array):
        return mx.array(value)
    if isinstance(value, list | tuple):
        return type(value)(_own(v) for v in value)
    if isinstance(value, dict):
        return {name: _own(v) for name, v in value.items()}
    return value


def _container(value: Any) -> Any:
    """Return `value`, a list as a new list of the same objects: a quantized cache has lists of arrays."""
    return list(value) if isinstance(value, list) else value
