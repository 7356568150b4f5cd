"""Streamed layer: counters, the path of a hit, prefetch and gates, on pools without files."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from engine_fakes import FakePool

from engine.stats import Stats
from engine.streaming.decode_state import DecodeState
from engine.streaming.gating import Gates
from engine.streaming.layer import StreamedLayer
from engine.streaming.layer_cache import LayerCache
from engine.streaming.prefetch import Prefetch, link


def a_state(layers: int = 1) -> DecodeState:
    reader: Any = None
    return DecodeState(layers, 6, half_life=8.0, reader=reader, stats=Stats())


def a_layer(state: DecodeState, number: int = 0, slots: int = 3, *, last: bool = False) -> tuple[StreamedLayer, FakePool]:
    pool = FakePool(list(range(6)), slots, state.slot_of[number], state.layers[number])
    pools: Any = [pool]
    return StreamedLayer(number, LayerCache(pools, state.slot_of[number]), state, last=last), pool


def decode(layer: StreamedLayer, *experts: int) -> list[float]:
    y = layer(mx.ones((1, 1, 1)), mx.array([[experts]], dtype=mx.uint32))
    return np.array(y).reshape(-1).tolist()


def test_misses_and_hits_of_decoded_tokens() -> None:
    state = a_state()
    layer, pool = a_layer(state)
    assert decode(layer, 4, 1) == [4, 1]
    state.position += 1
    assert (state.stats.hits, state.stats.misses) == (0, 2)
    assert decode(layer, 1, 4) == [1, 4]
    state.position += 1
    assert (state.stats.hits, state.stats.misses) == (2, 2) and [name for name, _ in pool.calls] == ["decode", "decode"]
    assert state.uses[0].tolist() == [0, 2, 0, 0, 2, 0]


def test_a_prefill_counts_each_expert_once_a_chunk_and_each_use_at_its_token() -> None:
    state = a_state()
    layer, _ = a_layer(state)
    y = layer(mx.ones((1, 3, 1)), mx.array([[[0, 1], [1, 2], [1, 0]]], dtype=mx.uint32))
    assert np.array(y)[0, ..., 0].tolist() == [[0, 1], [1, 2], [1, 0]]
    assert state.stats.misses == 3 and state.uses[0].tolist() == [2, 3, 1, 0, 0, 0]


def test_the_last_layer_is_skipped_while_its_output_is_not_used() -> None:
    state = a_state()
    layer, pool = a_layer(state, last=True)
    state.skip_last = True
    assert decode(layer, 4, 1) == [0, 0] and not pool.calls
    state.skip_last = False
    assert decode(layer, 4, 1) == [4, 1]


def test_predictions_are_read_ahead_and_compared_with_the_choice() -> None:
    state = a_state(2)
    (first, _), (second, pool) = a_layer(state, 0), a_layer(state, 1)
    first.prefetch = Prefetch(lambda x: mx.array([0]), first.guess, state.stats)
    second.prefetch = Prefetch(lambda x: mx.array([5, 3]), second.guess, state.stats)
    link([first.prefetch, second.prefetch], 1)
    decode(first, 0, 1)
    assert pool.calls == [("guess for 1", [5, 3])]
    decode(second, 3, 2)
    assert (state.stats.predicted_sets, state.stats.predicted_exact_sets) == (1, 0)
    assert (state.stats.predicted, state.stats.predicted_of) == (1, 2)
    state.position += 1
    decode(first, 1, 0)
    assert pool.calls[-1] == ("guess for 2", [5, 3])
    second.prefetch.reset()
    decode(second, 5, 3)
    assert state.stats.predicted_sets == 1


def test_gates_leave_out_light_missing_experts() -> None:
    state = a_state()
    layer, pool = a_layer(state)
    layer.gates = Gates(cold_drop=0.5, cache_prior=0.0, sums_alike=True)
    weights = mx.array([0.9, 0.1]).reshape(1, 1, 2, 1)
    y = layer(mx.ones((1, 1, 1)), mx.array([[[4, 2]]], dtype=mx.uint32), weights)
    assert np.allclose(np.array(y).reshape(-1), [4.0])  # the weight of the expert left out goes to the other
    assert pool.calls[0] == ("request", [4])
    assert (state.stats.dropped, state.stats.misses) == (1, 1) and abs(state.stats.dropped_mass - 0.1) < 1e-6
