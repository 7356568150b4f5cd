"""Decode state: what all streamed layers of one engine share."""

from __future__ import annotations

import numpy as np

from engine.disk.reader import Reader
from engine.native import core
from engine.stats import Stats


class DecodeState:
    """Reader, counters, and what is cached and how warm it is, over all layers.

    `slot_of` (int32, -1: not cached), `uses` and `warmth` (see `engine.cache.eviction`) are [layers, experts]; the `books`
    of each layer (`engine.native`) change them. `position` is the number of tokens processed. `skip_last` is set while the last
    layer's output is not used. `evaluate_last`: the last streamed layer evaluates its output, since the caller of the pass
    may not.
    """

    def __init__(self, layers: int, experts: int, half_life: float, reader: Reader, stats: Stats) -> None:
        self.reader = reader
        self.stats = stats
        stats.count_layers(layers)
        self.slot_of = np.full((layers, experts), -1, np.int32)
        self.uses = np.zeros((layers, experts), np.int64)
        self.warmth = np.full((layers, experts), -np.inf)
        self.books = [
            core.Layer(self.slot_of[n], self.warmth[n], self.uses[n], stats.layers[n], half_life) for n in range(layers)
        ]
        self.position = 0
        self.skip_last = False
        self.evaluate_last = False

    def reset(self) -> None:
        """Clear warmth and position; `uses` and the counters continue."""
        self.warmth[:] = -np.inf
        self.position = 0
