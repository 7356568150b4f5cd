"""Prefetch: predicts the experts of the next layers while this one computes, and reads them ahead.

`stale_gate` runs the next layers' own routers on this layer's input. Predictions are speculative: they evict no warmer
expert, demand reads overtake them, and every prediction is compared with the actual choice (`Stats`). It runs in decoding
only, since a prefill uses nearly every expert anyway.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from engine.cache.layer_pools import LayerPools, nothing
from engine.model.routers import Router
from engine.native import core
from engine.stats import Stats

from .decode_state import DecodeState


@dataclass
class Prediction:
    """Expert ids, on the device and not evaluated yet or recorded, that layer `of` will probably choose."""

    of: Prefetch
    ids: mx.array | np.ndarray


class Prefetch:
    """The predictor of one layer.

    `ahead` are the layers that this one predicts. `router` predicts this layer for others; `guess` reads experts
    speculatively into its slots.
    """

    def __init__(self, router: Router, guess: Callable[[np.ndarray], None], stats: Stats) -> None:
        self.ahead: list[Prefetch] = []
        self._router = router
        self._guess = guess
        self._stats = stats
        self._predicted: np.ndarray | None = None

    def reset(self) -> None:
        """Drop what was predicted for this layer."""
        self._predicted = None

    def predict(self, x: mx.array) -> list[Prediction]:
        """Return predictions for the layers ahead from this layer's input `x` of one token."""
        return [Prediction(p, p._router(x.reshape(1, 1, -1))) for p in self.ahead]

    def receive(self, predictions: list[Prediction]) -> None:
        """Hand evaluated predictions to their layers; several for one layer are united."""
        for p in predictions:
            ids = np.array(p.ids).reshape(-1).astype(np.int32)
            before = p.of._predicted
            p.of._predicted = ids if before is None else np.union1d(before, ids)

    def check(self, ids: np.ndarray, slot_of: np.ndarray, guessed: Container[int]) -> None:
        """Count how well this layer's prediction matches its choice `ids` [..., top-k], then drop the prediction."""
        chosen = ids.reshape(-1)
        if ids.size == ids.shape[-1] and self._predicted is not None:
            right = int((chosen[:, None] == self._predicted).any(axis=1).sum())
            self._stats.predicted_sets += 1
            self._stats.predicted_exact_sets += right == chosen.size
            self._stats.predicted_of += chosen.size
            self._stats.predicted += right
            self._stats.uncovered += int((slot_of[chosen] < 0).sum())
            self._stats.covered += sum(e in guessed for e in chosen.tolist())
        self._predicted = None

    def read_ahead(self, predictions: list[Prediction]) -> None:
        """Start reading what was predicted for other layers."""
        for p in predictions:
            if p.of is not self and p.of._predicted is not None:
                p.of._guess(p.of._predicted)


def count_choice(
    counted: core.Layer, pools: LayerPools[Any], prefetch: Prefetch | None, ids: np.ndarray, position: int,
    predictions: list[Prediction],
) -> Callable[[], None]:  # fmt: skip
    """Count the experts `ids` [..., any number] that a layer uses after `position` tokens, and compare what was predicted.

    `predictions` are this layer's for others, evaluated. Returns what runs once the missing experts are requested.
    """
    tokens = ids.size // ids.shape[-1]
    if prefetch is None:
        counted.count(ids, tokens, position)
        return nothing
    prefetch.receive(predictions)
    prefetch.check(ids, pools.slot_of, pools.guessed())
    counted.count(ids, tokens, position)
    return functools.partial(prefetch.read_ahead, predictions)


def request_choice(
    state: DecodeState, number: int, pools: LayerPools[Any], prefetch: Prefetch | None, ids: np.ndarray, slots: np.ndarray,
    predictions: list[Prediction],
) -> None:  # fmt: skip
    """Count and request the experts `ids` [tokens, top-k] of layer `number`, as `StreamedLayer` does, without computing.

    `predictions` are this layer's for others. `slots`, int32 [top-k], is scratch memory.
    """
    one_token = len(ids) == 1
    if one_token and prefetch is None and len(pools.pools) == 1 and pools.pools[0].decodes:
        pools.pools[0].decode_into(ids, state.position + 1, slots)
        return
    meanwhile = count_choice(state.layers[number], pools, prefetch, ids, state.position, predictions)
    for _ in pools.arrivals(pools.batches(ids[ids >= 0]), one_token=one_token, meanwhile=meanwhile):
        pass


def link(layers: list[Prefetch], depth: int) -> None:
    """Let every layer predict the `depth` layers after it; with depth 0, a control, every layer predicts itself."""
    for number, layer in enumerate(layers):
        layer.ahead = layers[number : number + 1] if depth == 0 else layers[number + 1 : number + 1 + depth]
