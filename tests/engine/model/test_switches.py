"""Switches: found one per layer, recognised in the last layer, and computing on permuted columns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU

from engine import Checkpoint, CheckpointError
from engine.model.open import open_model
from engine.model.switches import OrderedLinear, StreamingSwitch, is_last, switches


@pytest.fixture(scope="module")
def source(checkpoint: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.open(checkpoint("deepseek_v3"))


def test_every_layer_has_its_switch_and_the_last_is_known(source: Checkpoint) -> None:
    model = open_model(source)
    found = switches(model, source)
    assert [path.rpartition(".")[0] for path, _ in found] == [layer.block for layer in source.layers]
    assert all(isinstance(module, SwitchGLU) for _, module in found)
    modules = dict(model.named_modules())
    assert [is_last(path, modules) for path, _ in found] == [False] * (len(found) - 1) + [True]


def test_a_missing_switch_is_an_error(source: Checkpoint) -> None:
    with pytest.raises(CheckpointError, match=f"{len(source.layers)} layers of experts, but the model has 0"):
        switches(nn.Module(), source)


def test_a_stream_is_hidden_from_parameters() -> None:
    switch = StreamingSwitch(lambda x, indices: x + indices)
    assert not switch.parameters() and switch(mx.array([1]), mx.array([2])).item() == 3


def test_what_a_switch_has_beside_its_projections_stays() -> None:
    """A block may keep a norm there, which it calls itself."""
    replaced = SwitchGLU(32, 32, 2)
    replaced.post_expert_norm = nn.RMSNorm(32)
    switch = StreamingSwitch(lambda x, indices: x, replaced)
    assert [name for name, _ in tree_flatten(switch.parameters())] == ["post_expert_norm.weight"]
    assert switch.post_expert_norm is replaced.post_expert_norm


def test_ordered_columns_give_the_same_product() -> None:
    """Columns are permuted within blocks of 32; the input must be permuted alike."""
    rng = np.random.default_rng(0)
    how = {"group_size": 32, "bits": 8, "mode": "affine"}
    codes = mx.array(rng.integers(0, 255, (2, 4, 64), dtype=np.uint8))
    order = rng.permutation(32)
    shuffled = codes.reshape(2, 4, 2, 32)[..., mx.array(order)].reshape(2, 4, 64)
    scales, biases = mx.array(rng.random((2, 4, 2)).astype(np.float32)), mx.zeros((2, 4, 2))
    x, indices = mx.array(rng.random((1, 1, 1, 64)).astype(np.float32)), mx.array([[1]], dtype=mx.uint32)
    plain = QuantizedSwitchLinear(64, 4, 2, bias=False, **how)
    ordered = OrderedLinear(how, False, order)
    for linear, weight in ((plain, codes), (ordered, shuffled)):
        linear.weight, linear.scales, linear.biases = weight.view(mx.uint32), scales, biases
    assert mx.allclose(plain(x, indices), ordered(x, indices), rtol=1e-5)
