"""Tests of what a published measurement asks of its machine."""

from __future__ import annotations

import dataclasses

import pytest

from harness import ConfigError
from harness.forecast.world.measurements import world
from harness.forecast.world.setting import lacks, published

KNOWN = next(one for one in world() if one.name == "gmlx_k3_m5max_q2_k_xl")


def test_work_follows_from_the_shape_and_the_cache() -> None:
    found = published(KNOWN)
    assert found.cached_share == pytest.approx(31 / 799, rel=0.01) and found.disk_gbps == 14.5
    token_gb = 799 * 16 / 896
    assert all(0.3 * token_gb < gb < token_gb for gb in found.work.missed_gb) and found.work.weights_gb > token_gb


def test_slots_and_fewer_experts_of_a_token() -> None:
    one = dataclasses.replace(KNOWN, cache_gb=None, slots=448, top_k=8)
    found = published(one)
    assert found.cached_share == 0.5 and max(found.work.missed_gb) < max(published(KNOWN).work.missed_gb)


def test_what_is_not_published_is_named() -> None:
    assert lacks(dataclasses.replace(KNOWN, cache_gb=None)) == "the size of the cache"
    other = dataclasses.replace(KNOWN.machine, chip="Apple M2 Ultra")
    assert lacks(dataclasses.replace(KNOWN, machine=other)) == "the bandwidth of the disk"
    with pytest.raises(ConfigError, match="the size of the cache is not published"):
        published(dataclasses.replace(KNOWN, cache_gb=None))
