"""Tests of the time of a layer of a real shape."""

from __future__ import annotations

import dataclasses

import pytest

from engine import HeadraceError
from engine.shapes.library import shape
from harness.forecast.machine.layer import _shortened, layer_time
from harness.forecast.target import target
from tests.harness.forecast.test_target import KIMI_MINI


def test_a_layer_of_a_small_model() -> None:
    model = target(str(KIMI_MINI))
    found = layer_time(model.shape, model.base_bits)
    assert 0 < found.layer_ms < 1000 and found.rest_ms >= 0 and found.prompt_layer_ms > 0 and found.sd >= 0


def test_a_short_model_keeps_widths_and_kinds_of_layers() -> None:
    whole = shape("gpt_oss_20b")
    short = _shortened(whole, 3)
    assert (short.layers, short.experts, short.top_k) == (3, 16, whole.top_k)
    assert short.built.hidden == whole.built.hidden and short.built.vocabulary < whole.built.vocabulary


def test_a_model_of_one_layer_has_no_difference() -> None:
    whole = shape("qwen3_30b_a3b")
    one = dataclasses.replace(whole, config={**whole.config, "num_hidden_layers": 1})
    with pytest.raises(HeadraceError, match="has 1 layer, of which no difference can be measured"):
        layer_time(one, 4)
