"""Conversions by MLX: from the bytes of a file to codes of another width. All others are native (`engine.native`)."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from engine.checkpoint.experts import ExpertTensor
from engine.model.backend import STORED

from .slot_layout import Requantize, slot_dtype

RAW = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16, mx.uint32: np.uint32, mx.int32: np.int32,
       mx.uint8: np.uint8}  # fmt: skip


def to_mlx(source: memoryview, tensor: ExpertTensor, compute: mx.Dtype | None) -> mx.array:
    """Bytes as an MLX array, floats in the compute type."""
    stored = STORED[tensor.dtype]
    array = mx.array(np.frombuffer(source, RAW[stored]).reshape(tensor.shape))
    array = array.view(mx.bfloat16) if stored == mx.bfloat16 else array
    return array.astype(slot_dtype(tensor, compute))


def requantized(tensors: dict[str, mx.array], new: Requantize) -> tuple[mx.array, mx.array, mx.array]:
    """Codes, scales and biases of one projection at its new width."""
    weight = tensors["weight"]
    if new.source is not None:
        affine = new.source["mode"] == "affine"
        biases = tensors.get("biases", -8 * tensors["scales"]) if affine else None
        weight = mx.dequantize(weight, tensors["scales"], biases, **new.source)
    codes, scales, offsets = mx.quantize(weight, group_size=new.group_size, bits=new.bits)
    return codes, scales, offsets
