"""Decode state: uses, warmth and hits are counted once, at the right token."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.stats import Stats
from engine.streaming.decode_state import DecodeState


def a_state() -> DecodeState:
    reader: Any = None
    return DecodeState(2, 4, half_life=8.0, reader=reader, stats=Stats())


def test_hits_are_counted_at_the_end_of_the_pass() -> None:
    state = a_state()
    state.hit(0, np.array([1, 2]))
    state.hit(1, np.array([0, 3]))
    assert state.stats.hits == 0 and not state.uses.any()
    state.end_pass(1)
    assert state.stats.hits == 4 and state.uses.tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]
    assert [counts.hits for counts in state.stats.layers] == [2, 2] and state.position == 1
    state.end_pass(3)
    assert state.stats.hits == 4 and state.position == 4


def test_layers_may_choose_different_numbers_of_experts() -> None:
    state = a_state()
    state.hit(0, np.array([1, 2, 3]))
    state.hit(1, np.array([0]))
    state.end_pass(1)
    assert state.uses.tolist() == [[0, 1, 1, 1], [1, 0, 0, 0]]
    assert [counts.hits for counts in state.stats.layers] == [3, 1]


def test_recorded_hits_warm_experts_as_direct_uses_do() -> None:
    recorded, direct = a_state(), a_state()
    recorded.hit(1, np.array([0, 2]))
    recorded.end_pass(1)
    direct.use(1, np.array([0, 2]), 1)
    assert np.array_equal(recorded.policy.warmth, direct.policy.warmth)


def test_a_reset_clears_warmth_and_position_but_not_uses() -> None:
    state = a_state()
    state.use(0, np.array([1, 1]), np.array([1, 2]))
    state.end_pass(2)
    state.hit(0, np.array([3]))
    state.reset()
    state.end_pass(0)
    assert state.position == 0 and np.isneginf(state.policy.warmth).all() and state.uses[0].tolist() == [0, 2, 0, 0]
