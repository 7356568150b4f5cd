"""Passes: every forward pass of an engine's model, with its counters and its trace.

A pass is started by `Forward`, by mlx-lm's generation code or by a user who calls the model. The class of the root module
becomes a subclass whose call does the same bookkeeping as `Forward`. All else about the model is unchanged.

A slot must not be overwritten while a queued graph still reads it. A call of the model may return before it is evaluated:
the output of a single token is queued at once and awaited when the next pass begins; a longer pass evaluates the last
streamed layer, on which every earlier one depends, before it returns. With every expert cached nothing is awaited.
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from engine.routing.record import TraceWriter
from engine.stats import Stats

from .caller import drops_result
from .decode_state import DecodeState
from .layer import StreamedLayer


class Passes:
    """The passes of one model. `layers` and `state` are empty and None while every expert is resident.

    `reset_first`: a knob's decisions depend on what is cached, so every text starts with the cache as it was after loading.
    """

    def __init__(
        self, model: nn.Module, layers: list[StreamedLayer], state: DecodeState | None, *, reset_first: bool
    ) -> None:
        self.stats = state.stats if state is not None else Stats()
        self.trace: TraceWriter | None = None
        self.before_pass: Callable[[int], None] | None = None  # called before each pass with its number of tokens
        self.before_token: Callable[[], None] | None = None  # called before each pass of a single token
        self._reset_first = reset_first
        self._queued: Any = None  # output of the last single token
        self._batch: weakref.ref[Any] | None = None  # a cache of the last batch that decoded
        self.use(layers, state)
        self._signature = inspect.signature(type(model).__call__)
        model.__class__ = counted(type(model))
        object.__setattr__(model, "passes", self)

    def use(self, layers: list[StreamedLayer], state: DecodeState | None) -> None:
        """Go on with `layers` and `state`, which the model has from now on."""
        self._layers, self._state = layers, state
        partial = [layer for layer in layers if not layer.complete]
        self._may_miss = bool(partial)
        if partial:
            partial[-1].ends_pass = True

    def await_queued(self) -> None:
        """Wait until no queued graph reads a slot."""
        if self._queued is not None:
            queued, self._queued = self._queued, None
            mx.eval(queued)

    def begin(self) -> None:
        """Start a text. The same tokens then give the same logits, whatever was computed before."""
        if self._state is not None and self._reset_first:
            self.await_queued()
            self._state.reset()
            for layer in self._layers:
                layer.reset()

    def unclocked(self) -> AbstractContextManager[None]:
        """Around passes that no clock covers: their reads are not held to `ssd_gbps`."""
        return nullcontext() if self._state is None else self._state.reader.unheld()

    def run(self, model: Any, tokens: mx.array, cache: Any, *, phase: str, last_layer: bool = True) -> mx.array:
        """Return the logits of `tokens` [sequences, length], not evaluated. The caller evaluates them before the next pass.

        Without `last_layer`, the last layer's experts are neither read nor computed, and the logits are meaningless.
        """
        self.await_queued()
        return self._counted(model, (tokens,), {"cache": cache}, cache, tokens.size, phase, last_layer)

    def call(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, dropped: bool) -> Any:
        """Return what a call of the model returns. `dropped`: the caller ignores it, so it may be meaningless."""
        self.await_queued()
        usual = len(args) == 1  # mlx-lm passes only the tokens by position; binding takes longer than all else here
        named = kwargs if usual else self._signature.bind(model, *args, **kwargs).arguments
        sequences, length = _shape(args[0] if usual else list(named.values())[1], named)
        cache = named.get("cache")
        if self._reset_first and self._starts_a_text(cache):
            self.begin()
        decoding = length == 1 and not dropped
        if self._state is not None:
            self._state.evaluate_last = not decoding
        phase = "decode" if decoding else "prefill"
        out = self._counted(model, args, kwargs, cache, sequences * length, phase, not dropped)
        if decoding and self._may_miss:
            mx.async_eval(out)
            self._queued = out
        if decoding and self._reset_first:
            self._batch = next((weakref.ref(c) for c in _flat(cache) if _is_batch(c)), None)
        return out

    def _counted(
        self,
        model: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        cache: Any,
        tokens: int,
        phase: str,
        last_layer: bool,
    ) -> Any:
        state = self._state
        begins = self.trace is not None and self._starts_a_text(cache)
        if self.before_pass is not None:
            self.before_pass(tokens)
        if self.before_token is not None and phase == "decode":
            self.before_token()
        if state is None:
            out = model.plain(*args, **kwargs)
        else:
            state.skip_last = not last_layer
            try:
                out = model.plain(*args, **kwargs)
                state.position += tokens
            finally:
                state.skip_last = state.evaluate_last = False
        self.stats.tokens += tokens
        if self.trace is not None:
            self.trace.passed(tokens, phase, last_layer=last_layer, begins=begins)
        return out

    def _starts_a_text(self, cache: Any) -> bool:
        """Return whether a pass with `cache` is a text's first, and no batch of other texts is decoding."""
        batch = None if self._batch is None else self._batch()
        if batch is not None and not batch.empty():
            return False
        return all(c.empty() for c in _flat(cache) if hasattr(c, "empty"))


@functools.cache
def counted(cls: type) -> type:
    """Return a subclass of a model's class whose calls go through the model's `passes`."""

    @functools.wraps(cls.__call__)  # mlx-lm reads the signature
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.passes.call(self, args, kwargs, dropped=drops_result(sys._getframe(1)))

    return type(cls.__name__, (cls,), {"__call__": call, "plain": cls.__call__})


def _shape(tokens: mx.array, named: dict[str, Any]) -> tuple[int, int]:
    """Return the number of sequences and their length, which embeddings in place of tokens have, too."""
    embeddings = named.get("input_embeddings")
    shape = tokens.shape if embeddings is None else embeddings.shape
    return int(shape[0]), int(shape[1])


def _flat(cache: Any) -> Iterator[Any]:
    """Yield the caches in a list of caches, and those inside them."""
    for one in cache or ():
        if one is not None:
            yield one
            yield from _flat(getattr(one, "caches", None))


def _is_batch(cache: Any) -> bool:
    return isinstance(getattr(cache, "left_padding", None), mx.array)
