"""Tests of a layer's bookkeeping: exactly the given number of experts is missing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from engine import Knobs, load
from engine.bench.beside.child.bookkeeping import Bookkeeping
from engine.bench.decoding.hits import half_cached


@pytest.mark.parametrize("misses", [0, 1, 4])
def test_misses_of_each_token(random_model: Path, misses: int) -> None:
    with load(random_model, half_cached(random_model, Knobs(cache_gb=1))) as engine:
        us, counted = Bookkeeping(engine, misses).turn(20)
    assert counted == misses and us > 0


def test_more_misses_than_a_layer_can_have(random_model: Path) -> None:
    half = half_cached(random_model, Knobs(cache_gb=1))
    with load(random_model, half) as engine, pytest.raises(ValueError, match="misses=5 is not between 0 and top_k=4"):
        Bookkeeping(engine, 5)
    whole = Knobs(cache_gb=1)
    with load(random_model, whole) as engine, pytest.raises(ValueError, match="every layer is cached completely"):
        Bookkeeping(engine, 1)
    most = dataclasses.replace(half, cache_gb=1.4 * (half.cache_gb or 0))
    with load(random_model, most) as engine, pytest.raises(ValueError, match="instead of 4; cache fewer of them"):
        Bookkeeping(engine, 4)
