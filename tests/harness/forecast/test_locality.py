"""Tests of hit rates: made-up routing in any shape, and a model's own trace."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engine import HeadraceError
from harness.forecast.locality import own_world, worlds_of

TRACE = Path(__file__).resolve().parents[3] / "experiments" / "kimi_mini" / "routing_trace.parquet"


def test_more_slots_miss_less_and_all_slots_nothing() -> None:
    worlds = worlds_of(32, 4)
    missed = worlds.missed([2, 4, 8, 8.5, 16, 32])
    assert missed.shape == (len(worlds.names), 6) and (np.diff(missed, axis=1) <= 0).all()
    assert (missed[:, -1] == 0).all() and (missed[:, 0] > missed[:, 1]).all()
    layers = worlds.layers_missed([0, 2, 4, 8, 8.5, 16, 32])
    assert (layers[:, 0] == 1).all() and (layers[:, -1] == 0).all() and (np.diff(layers, axis=1) <= 0).all()
    assert (layers[:, 1:] >= missed).all()  # a layer misses if one of its experts does


def test_a_longer_prompt_uses_more_experts() -> None:
    shares = [worlds_of(32, 4).prompt_share(tokens) for tokens in (1, 16, 128, 4096)]
    assert shares == sorted(shares) and shares[-1] <= 1 and shares[0] == pytest.approx(4 / 32)


def test_a_model_that_uses_all_experts_has_nothing_to_stream() -> None:
    with pytest.raises(HeadraceError, match="uses 8 of 8 experts"):
        worlds_of(8, 8)


def test_the_own_trace_is_the_one_world() -> None:
    own = own_world(TRACE, 6, 64, 4)
    assert len(own.recordings) == 1 and 0 < own.missed([16])[0, 0] < 1


def test_a_trace_that_does_not_fit() -> None:
    with pytest.raises(HeadraceError, match=r"does not fit the model, which has 60 layers of 384 experts, top-8; give a"):
        own_world(TRACE, 60, 384, 8)
