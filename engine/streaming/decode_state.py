"""Decode state: what all streamed layers of one engine share."""

from __future__ import annotations

import numpy as np

from engine.cache.eviction import DecayedFrequency
from engine.disk.reader import Reader
from engine.stats import LayerCounts, Stats


class DecodeState:
    """Reader, counters, and what is cached and how warm it is, over all layers.

    `slot_of` (int32, -1: not cached), `uses` and the policy's warmth are [layers, experts]. `position` is the number of
    tokens processed. `skip_last` is set while the last layer's output is not used. `evaluate_last`: the last streamed layer
    evaluates its output, since the caller of the pass may not.
    """

    def __init__(self, layers: int, experts: int, half_life: float, reader: Reader, stats: Stats) -> None:
        self.reader = reader
        self.stats = stats
        self.stats.layers = [LayerCounts() for _ in range(layers)]
        self.policy = DecayedFrequency((layers, experts), half_life)
        self.slot_of = np.full((layers, experts), -1, np.int32)
        self.uses = np.zeros((layers, experts), np.int64)
        self.position = 0
        self.skip_last = False
        self.evaluate_last = False
        self._hits: list[tuple[int, np.ndarray]] = []

    def use(self, layers: np.ndarray | int, experts: np.ndarray, times: np.ndarray | int) -> None:
        """Count uses; the three arguments are broadcast against each other."""
        layers, experts = np.broadcast_arrays(layers, experts)
        self.policy.use((layers, experts), times)
        np.add.at(self.uses, (layers, experts), 1)

    def hit(self, layer: int, experts: np.ndarray) -> None:
        """Record that all of a token's `experts` were cached; `end_pass` counts them together, which is faster."""
        self._hits.append((layer, experts))

    def forget_hits(self) -> None:
        """Drop hits that were recorded and not counted."""
        self._hits.clear()

    def reset(self) -> None:
        """Clear warmth and position; `uses` and the counters continue."""
        self.policy.warmth[:] = -np.inf
        self.position = 0
        self.forget_hits()

    def end_pass(self, tokens: int) -> None:
        """Count the recorded hits of a forward pass and advance the position by `tokens`."""
        if self._hits:
            layers, experts = zip(*self._hits, strict=True)
            self._hits.clear()
            counts = [len(chosen) for chosen in experts]  # a layer may choose fewer experts than another
            self.use(np.repeat(layers, counts), np.concatenate(experts), self.position + 1)
            for layer, count in zip(layers, counts, strict=True):
                self.stats.count_uses(layer, count, 0)
        self.position += tokens
