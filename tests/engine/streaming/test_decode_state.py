"""Decode state: uses, warmth and hits are counted at the right token, in the arrays of all layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.cache.eviction import DecayedFrequency
from engine.stats import HITS, MISSES, Stats
from engine.streaming.decode_state import DecodeState


def a_state() -> DecodeState:
    reader: Any = None
    return DecodeState(2, 4, half_life=8.0, reader=reader, stats=Stats())


def test_each_layer_counts_for_itself() -> None:
    state = a_state()
    state.slot_of[0, [1, 2]] = [0, 1]
    state.layers[0].count(np.array([1, 2, 3]), 1, 0)
    state.layers[1].count(np.array([0]), 1, 0)
    assert state.uses.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    assert state.stats.layers[:, [HITS, MISSES]].tolist() == [[2, 1], [0, 1]]
    assert (state.stats.hits, state.stats.misses) == (2, 2)


def test_a_prompt_counts_uses_at_their_tokens_and_each_expert_once() -> None:
    state = a_state()
    state.layers[1].count(np.array([[0, 2], [2, -1], [2, 0]], np.int32), 3, 10)
    policy = DecayedFrequency(4, 8.0)
    policy.use(np.array([0, 2, 2, 2, 0]), np.array([11, 11, 12, 13, 13]))
    assert np.array_equal(state.warmth[1], policy.warmth) and np.isneginf(state.warmth[0]).all()
    assert state.uses[1].tolist() == [2, 0, 3, 0] and state.stats.misses == 2


def test_a_reset_clears_warmth_and_position_but_not_uses() -> None:
    state = a_state()
    state.layers[0].use(np.array([1, 1]), 1)
    state.position += 2
    state.reset()
    assert state.position == 0 and np.isneginf(state.warmth).all() and state.uses[0].tolist() == [0, 2, 0, 0]
