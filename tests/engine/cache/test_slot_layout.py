"""Slot layout: tensors keep their shapes, floats take the compute type, and a new width changes codes and scales."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from engine import Checkpoint
from engine.cache.slot_layout import Requantize, slot_bytes, slot_tensors


def test_stored_tensors_as_they_are(checkpoint: Callable[..., Path]) -> None:
    layer = Checkpoint.open(checkpoint("qwen3_moe", 4)).layers[0]
    found = {name: (shape, dtype) for name, shape, dtype in slot_tensors(layer, {}, None)}
    assert set(found) == {t.name for t in layer.tensors}
    assert slot_bytes(layer, {}, None) == layer.expert_bytes
    wide = {name: dtype for name, _, dtype in slot_tensors(layer, {}, mx.float32)}
    assert wide["up_proj.weight"] == mx.uint32 and wide["up_proj.scales"] == mx.float32


def test_a_new_width(checkpoint: Callable[..., Path]) -> None:
    layer = Checkpoint.open(checkpoint("qwen3_moe", 4)).layers[0]
    columns, rows = layer.input_dims("up_proj"), layer.tensor("up_proj.weight").shape[0]  # type: ignore[union-attr]
    new = {"up_proj": Requantize(32, 2, layer.quantization("up_proj"))}
    found = {name: shape for name, shape, _ in slot_tensors(layer, new, mx.float32)}
    assert found["up_proj.weight"] == (rows, columns * 2 // 32)
    assert found["up_proj.scales"] == found["up_proj.biases"] == (rows, columns // 32)


def test_biases_that_are_not_stored(checkpoint: Callable[..., Path]) -> None:
    layer = Checkpoint.open(checkpoint("kimi_k25", "int4")).layers[0]
    assert layer.zeros and layer.tensor("up_proj.biases") is None
    found = {name: shape for name, shape, _ in slot_tensors(layer, {}, None)}
    assert found["up_proj.biases"] == found["up_proj.scales"]
