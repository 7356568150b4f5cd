"""Tests of random weights: their shapes, their spread, and that they do not depend on how they are made."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from rehearsals import shape

from engine.packing import random_weights
from engine.packing.random_weights import RandomModel, by_layer, grid, random_model


@pytest.fixture(scope="module")
def model() -> RandomModel:
    return random_model(shape("qwen3_moe", hidden_size=128, moe_intermediate_size=96))


def array(model: RandomModel, name: str) -> mx.array:
    dtype = np.uint32 if model.tensors[name].dtype == "U32" else np.uint16
    found = mx.array(np.frombuffer(b"".join(model.values(name)), dtype).reshape(model.tensors[name].shape))
    return found if dtype == np.uint32 else found.view(mx.bfloat16)


def test_weights_have_mean_0_and_variance_1_over_columns(model: RandomModel) -> None:
    for name, group, bits, columns in (
        ("model.layers.0.mlp.switch_mlp.gate_proj", 32, 4, 128),
        ("model.layers.0.mlp.switch_mlp.down_proj", 32, 4, 96),
        ("model.layers.0.mlp.gate", 64, 8, 128),
    ):
        parts = [array(model, f"{name}.{part}") for part in ("weight", "scales", "biases")]
        weights = np.array(mx.dequantize(*parts, group_size=group, bits=bits).astype(mx.float32))
        assert model.group_size(f"{name}.scales") == group and weights.shape[-1] == columns
        assert abs(weights.mean()) < 0.02 and weights.var() * columns == pytest.approx(1, rel=0.1)


def test_norms_are_1(model: RandomModel) -> None:
    assert (array(model, "model.layers.0.input_layernorm.weight") == 1).all()


def test_values_do_not_depend_on_the_parts(model: RandomModel, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "model.layers.1.mlp.switch_mlp.up_proj.weight"
    whole = b"".join(model.values(name))
    monkeypatch.setattr(random_weights, "PART_BYTES", 4096)
    assert b"".join(model.values(name)) == whole and len([*model.values(name)]) > 1
    assert b"".join(model.values(name.replace("layers.1", "layers.2"))) != whole


def test_tensors_by_layer(model: RandomModel) -> None:
    groups = by_layer(model.tensors)
    assert len(groups) == 5 + 1 and sum(map(len, groups)) == len(model.tensors)
    assert grid(4, 1)[1] == pytest.approx(-7.5 * grid(4, 1)[0])
