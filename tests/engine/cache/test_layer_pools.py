"""Layer pools: the order of requests and waits, and what a batch holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from engine_fakes import FakePool

from engine.cache.layer_pools import LayerPools

EXPERTS = 8


def pools_of(*slots: int) -> tuple[LayerPools[FakePool], list[FakePool]]:  # type: ignore[type-var]
    """Pools of as many slots, which share the experts in turns."""
    slot_of = np.full(EXPERTS, -1, np.int32)
    pools = [FakePool(list(range(n, EXPERTS, len(slots))), count, slot_of) for n, count in enumerate(slots)]
    return LayerPools(pools, slot_of), pools


def arrived(layer: LayerPools[FakePool], ids: Sequence[int], *, one_token: bool) -> list[list[int]]:  # type: ignore[type-var]
    """The batches of a choice as they arrive, and [-1] where `meanwhile` ran."""
    seen: list[list[int]] = []
    batches = layer.batches(np.array(ids))
    for _, experts in layer.arrivals(batches, one_token=one_token, meanwhile=lambda: seen.append([-1])):
        assert (layer.slot_of[experts] >= 0).all()
        seen.append(experts.tolist())
    return seen


def test_what_fits_is_requested_before_the_first_wait() -> None:
    layer, (pool,) = pools_of(4)
    assert arrived(layer, [3, 1, 3], one_token=False) == [[-1], [1, 3]]
    assert pool.calls == [("request", [1, 3]), ("settle", [1, 3])]
    assert not layer.complete and pools_of(8)[0].complete


def test_a_batch_is_read_while_the_one_before_it_is_computed() -> None:
    layer, (pool,) = pools_of(4)
    assert arrived(layer, range(6), one_token=False) == [[0, 1], [2, 3], [4, 5], [-1]]
    requests = [call for call in pool.calls if call[0] == "request"]
    assert [experts for _, experts in requests] == [[0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]
    pool.calls.clear()
    assert arrived(layer, [0, 1, 6, 2, 3], one_token=False)[0] == [2, 3]  # the cached ones first


@pytest.mark.parametrize("one_token", [True, False])
def test_two_pools_are_requested_together_for_one_token(one_token: bool) -> None:
    layer, (first, second) = pools_of(4, 2)
    assert arrived(layer, [0, 1, 3], one_token=one_token) == ([[-1], [0], [1, 3]] if one_token else [[0], [1, 3], [-1]])
    assert first.calls[0] == ("request", [0]) and second.calls[0] == ("request", [1, 3])


def test_guesses_and_requests_reach_the_pool_of_each_expert() -> None:
    layer, (first, second) = pools_of(4, 4)
    layer.request(np.array([0, 1]), speculative=True)
    layer.guess(np.array([2, 3]), 7)
    assert first.calls == [("speculate", [0]), ("guess for 7", [2])] and second.calls == [
        ("speculate", [1]),
        ("guess for 7", [3]),
    ]
    first.guessed, second.guessed = [2], [3]
    assert layer.guessed() == {2, 3}
