"""Tests of short models of real shapes."""

from __future__ import annotations

import dataclasses

import pytest

from engine import HeadraceError
from engine.shapes.library import shape, shapes
from harness.forecast.machine.layer import DEEPER
from harness.forecast.machine.short import LEAST_ROUNDS, least_depth, probing, rounds, shortened

BUILT = [one.name for one in shapes() if not one.name.startswith("deepseek_v4")]  # mlx-lm has no code for DeepSeek V4


def test_a_short_model_keeps_widths_and_kinds_of_layers() -> None:
    whole = shape("gpt_oss_20b")
    short = shortened(whole, 3, 8)
    assert (short.layers, short.experts, short.top_k) == (3, 16, whole.top_k)
    assert short.built.hidden == whole.built.hidden and short.built.vocabulary == whole.built.vocabulary // 8


@pytest.mark.parametrize("name", BUILT)
def test_every_published_shape_has_short_models(name: str) -> None:
    whole = shape(name)
    low = least_depth(whole)
    for layers in (low, low + DEEPER):
        short = shortened(whole, layers, 8)
        assert short.built.layers == layers and short.layers > 0
    assert low <= 6


def test_a_shape_of_which_mlx_lm_builds_no_part() -> None:
    whole = shape("gpt_oss_20b")
    kinds = ["full_attention"] * 23 + ["sliding_attention"]
    odd = dataclasses.replace(whole, config={**whole.config, "layer_types": kinds})
    with pytest.raises(HeadraceError, match="mlx-lm builds no part of gpt_oss_20b"):
        least_depth(odd)


def test_what_a_probe_raises_is_one_line() -> None:
    one_line = r"a layer of x cannot be measured here \(bad\); name a profile: device=NAME"
    with pytest.raises(HeadraceError, match=one_line), probing("a layer of x"):
        raise ValueError("bad\nworse")
    with pytest.raises(HeadraceError, match="known"), probing("a layer of x"):
        raise HeadraceError("known")


def test_rounds_end_with_their_number_or_their_time() -> None:
    assert len(rounds(lambda: [1.0, 2.0], 20, 1.0)) == 20
    assert len(rounds(lambda: [100.0, 200.0], 20, 1.2)) == 4
    assert len(rounds(lambda: [1e6], 20, 1.0)) == LEAST_ROUNDS


def test_rounds_that_compile_are_left_out_and_take_no_time() -> None:
    times = iter([9000.0, 1.0, 1.0, 9000.0, *[1.0] * 16])
    assert rounds(lambda: [next(times), 1.0], 20, 1.0) == [[1.0, 1.0]] * 18
