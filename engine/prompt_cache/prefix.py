"""Prefix: the state after an evaluation text's prompt, and what a measurement needs of the prefill that led there.

In a file, what is needed of the prefill follows the model's caches as one more cache of arrays, so that mlx-lm can load it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import ArraysCache

from engine.errors import HeadraceError
from engine.measure.timed_pass import token_nll

KIND = "evaluation text"


@dataclass(frozen=True)
class Prefix:
    """`cache` is the model's, which decoding changes. `routing`: int16 [tokens, layers, top-k], -1 where a layer chose
    fewer experts. `nll`: negative log-likelihoods of the prompt's tokens from the second, nats, float64 [tokens - 1].
    `logits`: those after the last token, float32 [1, vocab]. `most_bytes`: what MLX had allocated at most during the
    prefill, beyond what it had afterwards."""

    cache: list[Any]
    routing: np.ndarray
    nll: np.ndarray
    logits: mx.array
    most_bytes: int

    def nll_with(self, target: int) -> np.ndarray:
        """`nll` and that of the first token after the prompt, float64 [tokens]."""
        return np.concatenate([self.nll, token_nll(self.logits, [target])])

    def take_memory(self) -> None:
        """Allocate what the prefill did, and free it: the run's peak memory is one of a user's, who computes the prompt."""
        mx.eval(mx.zeros(self.most_bytes, mx.uint8))

    def as_caches(self) -> list[Any]:
        """The caches to write to a file."""
        needed = ArraysCache(4)
        needed[0], needed[1], needed[2] = mx.array(self.routing), mx.array(self.nll.astype(np.float32)), self.logits
        needed[3] = mx.array([self.most_bytes], mx.int64)
        return [*self.cache, needed]


def prefix_of(caches: list[Any], tokens: int) -> Prefix:
    """The prefix in the caches of a file. Raises `HeadraceError` if it is none of `tokens` tokens."""
    *cache, needed = caches
    if not isinstance(needed, ArraysCache) or len(needed.cache) != 4:
        raise HeadraceError("it holds no routing")
    routing, nll = np.array(needed[0]), np.array(needed[1], dtype=np.float64)
    if len(routing) != tokens or len(nll) != tokens - 1:
        raise HeadraceError(f"it holds the routing of {len(routing)} tokens, not of {tokens}")
    return Prefix(cache, routing, nll, needed[2], int(needed[3].item()))
