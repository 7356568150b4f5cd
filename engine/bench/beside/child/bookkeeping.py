"""Bookkeeping: time of a streamed layer for a token, without its computation and without the wait for reads.

It is the time from the router's choice, already known, to the call of mlx-lm's own switch, and the layer's share of the
bookkeeping at the end of the token. A resident layer has neither.
"""

from __future__ import annotations

import itertools
import time
from typing import Any

import mlx.core as mx
import numpy as np

from .revision import part


class Bookkeeping:
    """An engine with a token's choices of which `misses` of top-k are never cached.

    The other experts are the same ones for every token. The missing ones are the rest of the layer's experts, one after the
    other. If the layer has fewer slots than those, each is evicted before its turn comes again. Where the reader is native,
    it reports reads as done without reading. Raises `ValueError` if a layer cannot miss so many.
    """

    def __init__(self, engine: Any, misses: int) -> None:
        self._stats = engine.stats
        self._state = part(engine, "state", "_run")
        self._end_pass = part(self._state, "end_pass")
        self.layers = [layer for layer in part(engine, "layers", "streams") or [] if not layer.complete]
        self.top_k = top_k = engine.checkpoint.top_k
        if not self.layers:
            raise ValueError("every layer is cached completely with this cache; give a larger model or a smaller cache")
        if not 0 <= misses <= top_k:
            raise ValueError(f"misses={misses} is not between 0 and top_k={top_k}")
        for layer in self.layers:
            for pool in part(layer, "cache.pools", "banks"):
                pool.inner = _nothing
        native = part(self._state, "reader.native")
        if native is not None:
            native.inject(skip=True)
        experts, fixed = min(layer.experts for layer in engine.checkpoint.layers), top_k - misses
        self._x = mx.zeros((1, 1, 1))
        begins = range(fixed, experts - misses + 1, misses) if misses else [fixed]
        chosen = [[*range(fixed), *range(begin, begin + misses)] for begin in begins]
        choices = [mx.array(np.array(ids, np.uint32)[None, None]) for ids in chosen]
        mx.eval(self._x, *choices)
        self._next = itertools.cycle(choices)
        for _ in choices:  # fills the slots
            self._token()
        _, counted = self.turn(len(choices))
        if counted != misses:
            raise ValueError(
                f"layers of {experts} experts miss {counted:g} a token instead of {misses}; cache fewer of them"
            )

    def turn(self, tokens: int) -> tuple[float, float]:
        """Microseconds per layer and token, and the misses of a layer and token that were counted."""
        stats = self._stats
        stats.reset()
        begin = time.perf_counter()
        for _ in range(tokens):
            self._token()
        seconds = time.perf_counter() - begin - stats.io_ms / 1e3
        count = tokens * len(self.layers)
        return seconds / count * 1e6, stats.misses / count

    def _token(self) -> None:
        indices = next(self._next)
        for layer in self.layers:
            layer(self._x, indices)
        if self._end_pass is None:  # nothing else is left to do at the end of a token
            self._state.position += 1
        else:
            self._end_pass(1)


def _nothing(x: mx.array, slots: mx.array) -> mx.array:
    return x
