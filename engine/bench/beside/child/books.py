"""Books: time of a streamed layer's bookkeeping for a token, without its computation and without the wait for reads.

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


class Books:
    """An engine with a token's choices of which `misses` of top-k are never cached.

    The other experts are the same ones for every token. The missing ones are the rest of the layer's experts, one after the
    other, and they are more than the layer has slots, so that each is evicted before its turn comes again.
    Raises `ValueError` if no layer can miss so many.
    """

    def __init__(self, engine: Any, misses: int) -> None:
        self._stats = engine.stats
        self._state = part(engine, "state", "_run")
        self.layers = [layer for layer in part(engine, "layers", "streams") or [] if not layer.complete]
        self.top_k = top_k = engine.checkpoint.top_k
        if not self.layers:
            raise ValueError("every layer is cached completely with this cache; give a larger model or a smaller cache")
        pools = [pool for layer in self.layers for pool in part(layer, "cache.pools", "banks")]
        experts = min(layer.experts for layer in engine.checkpoint.layers)
        fixed, slots = top_k - misses, max(pool.table.slots for pool in pools)
        if misses and not 0 <= fixed < slots < experts - misses:  # the missing ones are more than their slots
            raise ValueError(f"a layer of {experts} experts with {slots} slots and top-{top_k} cannot miss {misses} a token")
        for pool in pools:
            pool.inner = _nothing
        self._x = mx.zeros((1, 1, 1))
        begins = range(fixed, experts - misses + 1, misses) if misses else [fixed]
        chosen = [[*range(fixed), *range(begin, begin + misses)] for begin in begins]
        choices = [mx.array(np.array(ids, np.uint32)[None, None]) for ids in chosen]
        mx.eval(self._x, *choices)
        self._next = itertools.cycle(choices)
        for _ in choices:  # fills the slots
            self._token()

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
        self._state.end_pass(1)


def _nothing(x: mx.array, slots: mx.array) -> mx.array:
    return x
