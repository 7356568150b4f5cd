"""Layer cache: every path computes each expert's own output, in order, with at most as many experts as there are slots."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from engine_fakes import FakePool

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
