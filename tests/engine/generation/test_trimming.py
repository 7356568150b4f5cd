"""Trimming: what a stored cache saves for a prompt."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from engine.generation.trimming import always_trimmable, common_prefix, cut_copy, size_of, trimmable, usable


def filled(cache, tokens=10):
    values = mx.arange(tokens * 4, dtype=mx.float32).reshape(1, 1, tokens, 4)
    cache.update_and_fetch(values, values)
    return cache


@pytest.mark.parametrize(
    ("stored", "prompt", "cut", "whole"),
    [
        ([1, 2, 3], [1, 2, 3, 4], 3, 3),
        ([1, 2, 3], [1, 2, 3], 2, 0),  # one token is left to compute
        ([1, 2, 3, 4, 5], [1, 2, 9], 2, 0),
        ([1, 2, 3], [9, 2, 3], 0, 0),
        ([1], [1], 0, 0),
        ([1, 2], [], 0, 0),
    ],
)
def test_usable_tokens(stored, prompt, cut, whole):
    arrays = np.array(stored), np.array(prompt, dtype=np.int64)
    assert usable(arrays[0], True, arrays[1]) == cut
    assert usable(arrays[0], False, arrays[1]) == whole
    assert common_prefix(*arrays) == common_prefix(*arrays[::-1])


def test_which_caches_can_be_cut_back():
    assert trimmable([filled(KVCache()), CacheList(filled(KVCache()), filled(KVCache()))])
    assert trimmable([filled(RotatingKVCache(16))])
    assert not trimmable([filled(RotatingKVCache(8))])
    assert not trimmable([filled(KVCache()), ArraysCache(2)])
    assert not trimmable([])
    assert always_trimmable([KVCache(), CacheList(KVCache())])
    assert not always_trimmable([KVCache(), RotatingKVCache(16)])


def test_chunked_cache_that_dropped_its_front_is_not_cut():
    cache = filled(ChunkedKVCache(8))
    assert trimmable([cache])
    cache.maybe_trim_front()
    assert not trimmable([cache]) and not trimmable([CacheList(cache)])


def test_cut_copy_leaves_the_original_and_shares_its_arrays():
    cache = [filled(KVCache()), filled(RotatingKVCache(16))]
    mx.eval([c.state for c in cache])
    before = mx.get_active_memory()
    cut = cut_copy(cache, 4)
    assert [c.offset for c in cut] == [6, 6] and [c.offset for c in cache] == [10, 10]
    assert mx.get_active_memory() == before
    filled(cut[0], 3)
    assert cache[0].keys[0, 0, 6, 0].item() == 24
    assert cut_copy(cache, 11) is None
    assert size_of(cache) == sum(c.nbytes for c in cache)
