"""Streamed layer: a token's path through one layer of experts.

The router's choice is read back to the host, which is the layer's one sync. Missing experts are read into slots, and
mlx-lm's own module computes on the slots. In a speculative window (`engine.streaming.window`) the layer is queued without
that sync.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from engine.model.backend import backend
from engine.model.probe import deferred
from engine.model.switches import StreamingSwitch

from .decode_state import DecodeState
from .gating import Gates
from .layer_cache import LEFT_OUT, LayerCache
from .prefetch import Prediction, Prefetch, count_choice

Window = Callable[["StreamedLayer", mx.array, mx.array], mx.array]


class StreamedLayer:
    """One layer whose experts are streamed. `number` counts layers with experts from 0; `last`: no layer follows.

    `ends_pass`: no later layer may miss an expert.
    `window` computes the layer while it is part of a speculative window, which reads the router's choice from `chosen`.
    """

    def __init__(self, number: int, cache: LayerCache, state: DecodeState, *, last: bool) -> None:
        self.number = number
        self.cache = cache
        self.complete = cache.complete
        self.ends_pass = False
        self.prefetch: Prefetch | None = None
        self.window: Window | None = None
        self.gates: Gates | None = None
        self.chosen = mx.array([], dtype=mx.uint32)
        self._state = state
        self._last = last
        # On CUDA the device computes the experts while the next layer's graph is built. It has not been
        # measured elsewhere.
        self._starts = backend() == "cuda"
        self._only = cache.pools[0] if len(cache.pools) == 1 and cache.pools[0].decodes else None

    def reset(self) -> None:
        """Restore the cache after loading and drop predictions. No queued graph may still read the slots."""
        self.cache.reset()
        if self.prefetch is not None:
            self.prefetch.reset()

    def guess(self, experts: np.ndarray) -> None:
        """Queue speculative reads of `experts` for the next token."""
        self.cache.guess(experts, self._state.position + 1)

    def __call__(self, x: mx.array, indices: mx.array, weights: mx.array | None = None) -> mx.array:
        """Return the outputs [..., top-k, dims] of the experts `indices`.

        With the router's `weights` [..., top-k, 1], the gates decide which missing experts are read, and the outputs are
        multiplied by the weights. If the gates leave experts out, a single token has fewer than top-k outputs. Weights are
        not supported in windows.
        """
        if self._state.skip_last and self._last:
            return mx.zeros((*indices.shape, x.shape[-1]), x.dtype)
        if self.window is not None:
            return self.window(self, x, indices)
        if self.complete:
            return self.cache.on_device(x, indices)
        decoding = indices.size == indices.shape[-1]
        predictions = self.prefetch.predict(x) if self.prefetch is not None and decoding else []
        begin = perf_counter()
        mx.eval(indices, *(p.ids for p in predictions))
        self._state.stats.sync_ms += (perf_counter() - begin) * 1e3
        if decoding and weights is None and self.prefetch is None and self._only is not None:
            return self._started(self._only.inner(x, self._only.decode(indices, self._state.position + 1)))
        ids = np.array(indices).astype(np.int32)
        if weights is not None:
            ids, weights = self._gated(x, ids, weights)
        y = self._started(self._counted(x, ids, predictions))
        return y if weights is None else y * weights

    def _started(self, y: mx.array) -> mx.array:
        """Evaluate the outputs if nothing later does, or start their evaluation where that is worth its cost."""
        if self.ends_pass and self._state.evaluate_last:
            mx.eval(y)
        elif self._starts:
            mx.async_eval(y)
        return y

    def _gated(self, x: mx.array, ids: np.ndarray, weights: mx.array) -> tuple[np.ndarray, mx.array]:
        """Return choice and weights after the gates. Without a missing expert both stay as they are."""
        cached = self.cache.slot_of >= 0
        if self.gates is None or cached[ids].all():
            return ids, weights
        tokens, stats, candidates = ids.size // ids.shape[-1], self._state.stats, None
        needed = [weights]
        if self.gates.candidates is not None:
            wide = self.gates.candidates(x.reshape(1, tokens, -1))
            needed += [wide.ids, wide.weights]
        with stats.timed("sync_ms"):
            mx.eval(needed)
        own_weights, *others = (_as_numpy(a).reshape(tokens, -1) for a in needed)
        if others:
            candidates = others[0].astype(np.int32), others[1]
        choice = self.gates.decide(ids.reshape(tokens, -1), own_weights, candidates, cached)
        if choice is None:
            return ids, weights
        stats.swapped += choice.swapped
        stats.dropped += choice.dropped
        stats.dropped_mass += choice.dropped_mass
        kept, factors = choice.ids, choice.weights
        if tokens == 1:
            kept, factors = kept[kept != LEFT_OUT], factors[kept != LEFT_OUT]
        shape = (*ids.shape[:-1], -1)
        return kept.reshape(shape), mx.array(factors.reshape(*shape, 1)).astype(weights.dtype)

    def _counted(self, x: mx.array, ids: np.ndarray, predictions: list[Prediction]) -> mx.array:
        """Count the use of the experts `ids` [..., any number] and return their outputs; experts left out give 0."""
        counted, position = self._state.layers[self.number], self._state.position
        return self.cache.on_host(x, ids, count_choice(counted, self.cache, self.prefetch, ids, position, predictions))


class GatedSwitch(StreamingSwitch):
    """A streaming switch whose outputs are computed when the block multiplies them by the gate weights."""

    def __call__(self, x: mx.array, indices: mx.array) -> Any:
        return deferred(x, indices, functools.partial(self.stream, x, indices))


def _as_numpy(array: mx.array) -> np.ndarray:
    """Return an evaluated array as numpy, which has no bfloat16."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
