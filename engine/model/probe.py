"""Probe: a block's own router, run up to the point where its switch is called or its outputs are weighted.

A switch sees its input and the chosen experts. The gate weights come afterwards, when the block multiplies the switch's
outputs by them: `(y * weights[..., None]).sum(-2)`. A copy of the block with a stand-in for the switch therefore reveals
choice and weights, whatever the block does to compute them. `Deferred` outputs postpone the experts' computation until the
weights are known. Blocks of unknown kinds are tested for this before the first token.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class Outputs:
    """A switch's outputs [..., top_k, dims]; multiplied by weights [..., top_k, 1] they give `weighted(weights)`."""

    __slots__ = ("_weighted", "_y")

    def __init__(self, y: mx.array, weighted: Callable[[mx.array], mx.array]) -> None:
        self._y = y
        self._weighted = weighted

    def __mul__(self, weights: mx.array) -> mx.array:
        return self._weighted(weights)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._y, name)


class Deferred(Outputs):
    """Outputs that are computed when the weights are known. Before that they have a shape and a type only."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "dtype", "ndim", "size"):
            raise AttributeError(f"outputs that wait for their weights have no attribute {name}")
        return getattr(self._y, name)


class Probed(Exception):
    """Raised to stop a probed block: its switch's input `x`, the choice `ids` [..., top_k], and with `weigh` the weights.

    `weights` [..., top_k, 1] is None if the block was stopped at its switch.
    """

    def __init__(self, x: mx.array, ids: mx.array, weights: Any = None) -> None:
        self.x = x
        self.ids = ids
        self.weights = weights


class _StandIn(nn.Module):
    """The module in place of the switch in a copy of a block."""

    def __init__(self, call: Callable[[mx.array, mx.array], Any]) -> None:
        super().__init__()
        object.__setattr__(self, "call", call)

    def __call__(self, x: mx.array, indices: mx.array) -> Any:
        return self.call(x, indices)


def with_stand_in(block: Any, switch: str, call: Callable[[mx.array, mx.array], Any]) -> Any:
    """Return a copy of a block in which `call` replaces the switch named `switch`."""
    copied = copy.copy(block)
    copied[switch] = _StandIn(call)
    return copied


def deferred(x: mx.array, ids: mx.array, weighted: Callable[[mx.array], mx.array]) -> Deferred:
    """Return the outputs of a switch with input `x` and choice `ids`; `weighted` computes them times their weights."""
    return Deferred(mx.zeros((*ids.shape, x.shape[-1]), x.dtype), weighted)


def probe(block: Any, switch: str, *, weigh: bool) -> Callable[[mx.array], Probed]:
    """Return a function from a block's input [1, tokens, dims] to what its router chooses, with its weights if `weigh`.

    The function raises what the block raises, and `TypeError` if the block does not call its switch or weight its outputs.
    """

    def call(x: mx.array, ids: mx.array) -> Any:
        def stop(weights: mx.array) -> mx.array:
            raise Probed(x, ids, weights)

        if weigh:
            return deferred(x, ids, stop)
        raise Probed(x, ids)

    copied = with_stand_in(block, switch, call)

    def run(x: mx.array) -> Probed:
        try:
            copied(x)
        except Probed as probed:
            return probed
        raise TypeError("the block did not weight its switch's outputs" if weigh else "the block did not call its switch")

    return run


def weights_outputs(block: Any, switch: str, dims: int) -> bool:
    """Return whether a block first multiplies its switch's outputs by one weight per expert."""
    try:
        probed = probe(block, switch, weigh=True)(mx.zeros((1, 1, dims)))
    except Exception:  # an unknown block may raise anything
        return False
    return getattr(probed.weights, "shape", None) == (*probed.ids.shape, 1)


def sums_outputs(block: Any, switch: str, x: mx.array) -> bool:
    """Return whether a block only sums its weighted outputs, so that their sum alone gives the same result."""

    def answer(as_one: bool) -> mx.array:
        def call(x: mx.array, ids: mx.array) -> Deferred:
            count = 1 if as_one else ids.shape[-1]
            total = mx.random.normal((*ids.shape[:-1], 1, x.shape[-1]), key=mx.random.key(1))
            return deferred(x, ids, lambda _: mx.repeat(total / count, count, axis=-2))

        return with_stand_in(block, switch, call)(x)

    return bool(mx.allclose(answer(True), answer(False), atol=1e-4))


def widened(block: Any, switch: str, top_k: int, wide: int, dims: int) -> Any | None:
    """Return a copy of a block whose router chooses `wide` experts for an input [1, 1, dims]; None if that is not possible.

    Blocks keep their `top_k` under different names. Every number with that value is tried, alone and then all together.
    """
    children = [name for name in block if name != switch and isinstance(block[name], nn.Module)]
    holders = {"": block, **{name: block[name] for name in children}}
    places = [(at, name) for at, module in holders.items() for name in vars(module) if _is(getattr(module, name), top_k)]
    for chosen in (*([place] for place in places), places):
        copied = copy.copy(block)
        for at in {at for at, _ in chosen if at}:
            copied[at] = copy.copy(block[at])
        for at, name in chosen:
            setattr(copied[at] if at else copied, name, wide)
        try:
            if probe(copied, switch, weigh=False)(mx.zeros((1, 1, dims))).ids.shape[-1] == wide:
                return copied
        except Exception:  # another number of an unknown block may raise anything
            continue
    return None


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number
