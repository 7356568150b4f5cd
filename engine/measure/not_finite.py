"""Figures that are not finite: where they begin in a model, and what to do.

Broken weights, or a type that overflows, give NaN or infinity somewhere. From there to the logits all is lost, and every
figure computed from them means nothing. The first layer with such an output is the place to look at. It is found after the
fact, by one more pass over the same tokens in which each layer's output is looked at; measured passes do not pay for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from engine.errors import FigureError


class LogitsError(FigureError):
    """Logits that are not finite."""


class _Found(Exception):
    """Ends the pass at the first layer."""


def check_logits(finite: bool, after: str) -> None:
    """Raise `LogitsError` for logits that are not finite; `after` says which: `timed token 7`."""
    if not finite:
        raise LogitsError(f"the logits after {after} are not finite")


def check_nll(nll: np.ndarray, after: str) -> np.ndarray:
    """`nll`, the negative log-likelihoods of tokens. Raises `LogitsError` if one is not finite."""
    check_logits(bool(np.isfinite(nll).all()), after)
    return nll


def explained(error: FigureError, name: str, place: str, lossy: Mapping[str, Any]) -> LogitsError:
    """`error` with the model's name, the place of the first output that is not finite (may be empty), and a remedy."""
    where = f"; {place}" if place else ""
    knobs = ", ".join(f"{knob}={value}" for knob, value in lossy.items())
    remedy = f"unset {knobs}" if knobs else "copy the checkpoint again, or use another conversion of the model"
    return LogitsError(f"{name}: {error}{where}; {remedy}")


def first_layer(model: nn.Module, run: Callable[[], Iterable[mx.array]]) -> str:
    """The first layer whose output is not finite while `run()` computes logits, as a phrase; empty if all are finite."""
    layers = list(getattr(model, "layers", None) or ())
    found = ""

    def look(number: int, out: Any) -> None:
        nonlocal found
        for array in _arrays(out):
            if not _finite(array):
                found = f"the output of layer {number} of 0 .. {len(layers) - 1} is the first that is not finite"
                raise _Found

    with _observed(layers, look), contextlib.suppress(_Found):
        if not all(_finite(logits) for logits in run()) and layers:
            found = f"the outputs of all {len(layers)} layers are finite, but not that of the head"
    return found


def _finite(array: mx.array) -> bool:
    return not mx.issubdtype(array.dtype, mx.floating) or bool(mx.isfinite(array).all().item())


@contextlib.contextmanager
def _observed(layers: list[Any], look: Callable[[int, Any], None]) -> Iterator[None]:
    """Call `look` with the number and the output of each layer that computes."""
    classes = [type(layer) for layer in layers]
    try:
        for number, (layer, cls) in enumerate(zip(layers, classes, strict=True)):
            layer.__class__ = _observing(cls, number, look)
        yield
    finally:
        for layer, cls in zip(layers, classes, strict=True):
            layer.__class__ = cls


def _observing(cls: type, number: int, look: Callable[[int, Any], None]) -> type:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = cls.__call__(self, *args, **kwargs)
        look(number, out)
        return out

    return type(cls.__name__, (cls,), {"__call__": call})


def _arrays(out: Any) -> Iterator[mx.array]:
    if isinstance(out, mx.array):
        yield out
    elif isinstance(out, list | tuple):
        for one in out:
            yield from _arrays(one)
