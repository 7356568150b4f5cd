"""Tests of the time of a layer of a real shape."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine import HeadraceError
from engine.model.backend import compute_dtype
from engine.shapes.library import shape
from harness.forecast.machine.layer import _Short, _times, layer_time
from harness.forecast.target import target
from tests.harness.forecast.test_target import KIMI_MINI


def test_a_layer_of_a_small_model() -> None:
    model = target(str(KIMI_MINI))
    found = layer_time(model.shape, model.base_bits)
    assert 0 < found.layer_ms < 1000 and found.rest_ms >= 0 and found.prompt_layer_ms > 0 and found.sd >= 0


class Passes:
    """A short model whose passes take `ms`."""

    def __init__(self, ms: float) -> None:
        self._ms = ms

    def run(self, tokens: int) -> float:
        return self._ms


def test_a_part_of_the_head_is_multiplied_and_the_pass_is_not() -> None:
    """A pass of 3 ms, two layers of 2 ms, and a head of 8 ms, of which a quarter and an eighth are measured."""
    one, more, less = Passes(3 + 2 * 2 + 2), Passes(3 + 6 * 2 + 2), Passes(3 + 2 * 2 + 1)
    found = _times(one, more, less, 2, 4, 4)  # type: ignore[arg-type]
    assert (found.layer_ms, found.rest_ms, found.sd) == (pytest.approx(2), pytest.approx(3 + 8), 0)
    whole = _times(Passes(3 + 2 * 2 + 8), Passes(3 + 6 * 2 + 8), less, 2, 4, 1)  # type: ignore[arg-type]
    assert whole.rest_ms == pytest.approx(3 + 8)


class Compiled(Passes):
    """A short model one of whose passes compiles kernels."""

    def __init__(self, ms: float) -> None:
        super().__init__(ms)
        self._passes = 0

    def run(self, tokens: int) -> float:
        self._passes += 1
        return 1e4 if self._passes == 40 else super().run(tokens)


def test_kernels_that_are_compiled_do_not_count() -> None:
    found = _times(Compiled(7), Passes(15), Passes(7), 2, 4, 1)  # type: ignore[arg-type]
    assert (found.layer_ms, found.rest_ms, found.sd) == (pytest.approx(2), pytest.approx(3), 0)


def test_a_model_of_one_layer_has_no_difference() -> None:
    whole = shape("qwen3_30b_a3b")
    one = dataclasses.replace(whole, config={**whole.config, "num_hidden_layers": 1})
    with pytest.raises(HeadraceError, match="has 1 layer, of which no difference can be measured"):
        layer_time(one, 4)


def test_matrices_lie_as_the_engine_lays_them() -> None:
    """On the CPU column by column: other layouts take longer, and the forecast would be too slow."""
    short = _Short(target(str(KIMI_MINI)).shape, None)
    weight = np.array(short._model.layers[0].self_attn.o_proj.weight, copy=False)
    assert compute_dtype() is None or weight.strides[0] < weight.strides[1]
