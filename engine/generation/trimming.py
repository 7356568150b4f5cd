"""Trimming: which part of a stored KV cache a prompt can reuse.

Attention caches can be cut back to any length. Recurrent states, and sliding windows that have dropped tokens, are of use
only to prompts that begin with all of their tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import (
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    can_trim_prompt_cache,
    trim_prompt_cache,
)

ALWAYS = (KVCache, QuantizedKVCache)  # caches that can be cut back at any length


def trimmable(cache: list[Any]) -> bool:
    """Whether a cache can be cut back to any shorter length."""
    return bool(cache) and can_trim_prompt_cache(cache) and not any(_dropped_front(c) for c in cache)


def always_trimmable(cache: list[Any]) -> bool:
    """Whether caches of these classes can be cut back at any length, however long they grow."""
    return all(always_trimmable(list(c.caches)) if isinstance(c, CacheList) else isinstance(c, ALWAYS) for c in cache)


def cut_copy(cache: list[Any], tokens: int) -> list[Any] | None:
    """A copy of a cache without its last `tokens` tokens; None if it cannot be cut that far. The arrays are shared."""
    cache = copy.deepcopy(cache)
    if tokens and trim_prompt_cache(cache, tokens) != tokens:
        return None
    return cache


def common_prefix(a: np.ndarray | Sequence[int], b: np.ndarray | Sequence[int]) -> int:
    """Count of equal tokens at the start of two sequences."""
    shorter = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:shorter]) != np.asarray(b[:shorter]))
    return int(different[0]) if len(different) else shorter


def usable(stored: np.ndarray, can_cut: bool, prompt: np.ndarray) -> int:
    """Count of the prompt's tokens that a stored prefix saves. At least one token is left to compute the logits from."""
    common, most = common_prefix(stored, prompt), len(prompt) - 1
    if can_cut:
        return max(0, min(common, most))
    return len(stored) if common == len(stored) <= most else 0


def size_of(cache: list[Any]) -> int:
    """Bytes of a cache's arrays."""
    leaves = dict(tree_flatten([c.state for c in cache]))
    return sum(value.nbytes for value in leaves.values() if isinstance(value, mx.array))


def _dropped_front(cache: Any) -> bool:
    """Whether a chunked cache has dropped its first tokens: an earlier position would miss the start of its chunk."""
    if isinstance(cache, CacheList):
        return any(_dropped_front(c) for c in cache.caches)
    return isinstance(cache, ChunkedKVCache) and cache.start_position > 0
