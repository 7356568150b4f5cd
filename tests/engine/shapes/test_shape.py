"""Tests of a shape's sizes."""

from __future__ import annotations

import resource
import sys

import mlx.core as mx
import pytest

from engine import HeadraceError
from engine.shapes.library import shape


def test_kimi_k2_5_reads_11_9_gb_a_token_without_a_cache() -> None:
    kimi = shape("kimi_k2_5")
    assert (kimi.layers, kimi.experts, kimi.top_k, kimi.context_limit) == (60, 384, 8, 262144)
    assert kimi.expert_bytes() == 3 * 7168 * 2048 * 4.5 / 8
    assert kimi.token_bytes() == 60 * 8 * kimi.expert_bytes() == pytest.approx(11.9e9, rel=1e-3)
    assert kimi.total_bytes() == kimi.resident_bytes() + kimi.experts_bytes()


def test_biases_of_experts_count() -> None:
    weights, biases = 3 * 2880 * 2880, 3 * 2880
    assert shape("gpt_oss_20b").expert_bytes() == weights * 4.25 / 8 + 2 * biases
    assert shape("gpt_oss_20b").expert_bytes(8, 32) == weights * 9 / 8 + 2 * biases


def test_fewer_bits_take_fewer_bytes() -> None:
    olmoe = shape("olmoe_1b_7b")
    for size in (olmoe.expert_bytes, olmoe.resident_bytes, olmoe.total_bytes, olmoe.token_bytes):
        assert size(2) < size(4) < size(4, 32) < size(8) < size(16)
    assert olmoe.total_bytes(16) == olmoe.total_bytes() == 2 * olmoe.parameters


def test_an_architecture_that_mlx_lm_lacks_has_sizes_but_no_module() -> None:
    flash = shape("deepseek_v4_flash")
    assert (flash.layers, flash.experts, flash.top_k) == (43, 256, 6) and not flash.has_module
    assert flash.expert_bytes(4) == 3 * 4096 * 2048 * 4.5 / 8
    assert flash.total_bytes(4) > flash.total_bytes() > flash.resident_bytes() > 0
    with pytest.raises(HeadraceError, match="mlx-lm has no architecture deepseek_v4, so that the shape gives sizes only"):
        assert flash.built


def test_a_trillion_parameters_take_no_memory() -> None:
    before, active = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, mx.get_active_memory()
    kimi = shape("kimi_k2_7_code")
    assert kimi.total_bytes(3) > 400e9
    unit = 1 if sys.platform == "darwin" else 1024
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 300e6
    assert mx.get_active_memory() - active < 50e6
