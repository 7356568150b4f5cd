"""Layer cache: every path computes each expert's own output, in order, with at most as many experts as there are slots."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from engine_fakes import FakePool

from engine import Knobs, footprint, load
from engine.streaming.layer_cache import LEFT_OUT, LayerCache


def a_cache(*sizes: tuple[list[int], int]) -> tuple[LayerCache, list[FakePool]]:
    """A cache with one pool for each (members, slots)."""
    slot_of = np.full(sum(len(members) for members, _ in sizes), -1, np.int32)
    pools = [FakePool(members, slots, slot_of) for members, slots in sizes]
    some: Any = pools
    return LayerCache(some, slot_of), pools


def outputs(cache: LayerCache, ids: list[list[int]]) -> list[list[float]]:
    """Outputs of tokens with choices `ids`; the input is 1."""
    y = cache.on_host(mx.ones((len(ids), 1)), np.array(ids, np.int32))
    return np.array(y)[..., 0].tolist()


def test_one_token_of_one_pool() -> None:
    cache, (pool,) = a_cache(([0, 1, 2, 3], 2))
    assert outputs(cache, [[3, 1]]) == [[3, 1]]
    assert pool.calls == [("request", [1, 3]), ("settle", [1, 3])]
    assert not cache.complete


def test_one_token_of_two_widths_keeps_its_order() -> None:
    cache, _ = a_cache(([0, 2, 4], 2), ([1, 3, 5], 2))
    assert outputs(cache, [[5, 0, 3, 4]]) == [[5, 0, 3, 4]]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_more_experts_than_slots_are_computed_in_batches(slots: int) -> None:
    cache, _ = a_cache((list(range(8)), slots))
    ids = [[7, 0], [3, 7], [1, 2], [6, 5]]
    assert outputs(cache, ids) == ids


def test_experts_left_out_give_zero() -> None:
    cache, _ = a_cache((list(range(4)), 3))
    assert outputs(cache, [[3, LEFT_OUT], [1, 2]]) == [[3, 0], [1, 2]]


def test_the_wait_follows_what_runs_meanwhile() -> None:
    cache, (pool,) = a_cache(([0, 1, 2, 3], 2))
    cache.on_host(mx.ones((1, 1)), np.array([[2, 0]], np.int32), lambda: pool.calls.append(("meanwhile", [])))
    assert [name for name, _ in pool.calls] == ["request", "meanwhile", "settle"]


def test_the_device_gives_zero_for_missing_experts() -> None:
    cache, _ = a_cache(([0, 2], 1), ([1, 3], 1))
    cache.request(np.array([2, 3]), speculative=False)
    y = cache.on_device(mx.ones((1, 1)), mx.array([[3, 1, 2, 0]]))
    assert np.array(y)[..., 0].tolist() == [[3, 0, 2, 0]]
    cache.request(np.array([1]), speculative=True)  # evicts 3, and the device's table follows
    y = cache.on_device(mx.ones((1, 1)), mx.array([[3, 1, 2, 0]]))
    assert np.array(y)[..., 0].tolist() == [[0, 1, 2, 0]]


def test_requests_and_guesses_reach_the_pool_of_each_expert() -> None:
    cache, (first, second) = a_cache(([0, 2], 2), ([1, 3], 1))
    cache.request(np.array([3, 0]), speculative=True)
    cache.guess(np.array([1, 2]), 7)
    assert first.calls == [("speculate", [0]), ("guess for 7", [2])]
    assert second.calls == [("speculate", [3]), ("guess for 7", [1])]
    second.settled = False
    assert cache.waits_for(np.array([1])) and not cache.take_in()


@pytest.mark.parametrize(("parts", "rows"), [((1, 6), [6] * 4), ((2, 0), [1] * 8), ((2, 3), [3] * 8)])
def test_a_prompt_is_computed_with_the_kernel_of_the_whole(
    parts: tuple[int, int], rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, (pool,) = a_cache((list(range(8)), 8))
    pool.loose = 4  # four batches of two experts
    inner, seen = pool.inner, []
    monkeypatch.setattr(cache, "_parts", lambda *_: parts)
    monkeypatch.setattr(pool, "inner", lambda x, slots: seen.append(slots.shape[0]) or inner(x, slots), raising=False)
    ids = [[7, 0], [3, 6], [1, 2], [4, 5]]
    assert outputs(cache, ids) == ids and seen == rows


def test_a_prompt_that_fits_is_split_where_its_kernel_would_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    cache, _ = a_cache((list(range(8)), 8))
    monkeypatch.setattr(cache, "_parts", lambda *_: (2, 0))
    ids = [[7, 0], [3, 6]]
    assert outputs(cache, ids) == ids


@pytest.mark.parametrize("backend", ["cuda", "metal"])
@pytest.mark.parametrize("bits", [None, 4])
def test_the_rules_of_a_gpu_keep_every_row(
    backend: str, bits: int | None, checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the CPU, whose results do not depend on them."""
    path, ids = checkpoint("qwen3_moe", bits), list(range(1, 41))
    with load(path) as resident:
        expected = resident.logits(ids)
    monkeypatch.setattr("engine.streaming.layer_cache.backend", lambda: backend)
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb)) as engine:
        parts = [engine.layers[0].cache._parts(engine.layers[0].cache.pools[0], 3, len(ids) * 3)]
        assert parts != [(1, 0)] or (backend, bits) == ("metal", 4)
        assert np.array_equal(engine.logits(ids), expected)
