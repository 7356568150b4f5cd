"""Prefix: what comes back from the caches of a file, and what is refused."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache

from engine.errors import HeadraceError
from engine.measure.timed_pass import token_nll
from engine.prompt_cache.prefix import Prefix, prefix_of

LOGITS = mx.random.normal((3, 16))
NLL = token_nll(LOGITS, [1, 2, 3])


def a_prefix() -> Prefix:
    return Prefix([KVCache()], np.arange(24, dtype=np.int16).reshape(3, 4, 2), NLL[:-1], LOGITS[-1:], 1 << 20)


def test_everything_comes_back() -> None:
    prefix = a_prefix()
    back = prefix_of(prefix.as_caches(), 3)
    assert np.array_equal(back.routing, prefix.routing) and back.routing.dtype == np.int16
    assert np.array_equal(back.nll_with(3), NLL)
    assert [type(c) for c in back.cache] == [KVCache] and back.most_bytes == 1 << 20


def test_the_memory_of_the_prefill_is_taken_once() -> None:
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    a_prefix().take_memory()
    assert mx.get_peak_memory() >= before + (1 << 20) and mx.get_active_memory() < before + (1 << 20)


@pytest.mark.parametrize(
    ("caches", "tokens", "why"),
    [
        ([KVCache(), KVCache()], 3, "it holds no routing"),
        ([KVCache(), ArraysCache(2)], 3, "it holds no routing"),
        (a_prefix().as_caches(), 4, "the routing of 3 tokens, not of 4"),
    ],
)
def test_another_file_is_refused(caches: list, tokens: int, why: str) -> None:
    with pytest.raises(HeadraceError, match=why):
        prefix_of(caches, tokens)
