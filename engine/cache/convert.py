"""Conversions: from the bytes of a file to what a slot holds."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from engine.checkpoint.dtypes import to_bytes
from engine.checkpoint.experts import ExpertTensor
from engine.checkpoint.store.bitplanes import join
from engine.model.backend import STORED

from .slot_layout import Requantize, slot_dtype

RAW = {mx.float32: np.float32, mx.float16: np.float16, mx.bfloat16: np.uint16, mx.uint32: np.uint32, mx.int32: np.int32,
       mx.uint8: np.uint8}  # fmt: skip


def to_float32(source: memoryview, tensor: ExpertTensor, target: np.ndarray) -> None:
    """Widen bfloat16 or float16 bytes into float32 memory; both conversions are exact."""
    if tensor.dtype == "BF16":
        codes = np.frombuffer(source, np.uint16).reshape(tensor.shape)
        np.left_shift(codes, 16, out=target.view(np.uint32), dtype=np.uint32)
    else:
        target[...] = np.frombuffer(source, np.float16).reshape(tensor.shape)


def join_streams(views: list[memoryview], tensor: ExpertTensor, target: np.ndarray) -> None:
    """Join the streams of packed codes, the upper bits first, into `target`."""
    streams = [np.frombuffer(view, np.uint8) for view in views]
    out = target.reshape(-1).view(np.uint8)
    codes = streams[0]
    for number, lower in enumerate(streams[1:], start=1):
        into = out if number == len(streams) - 1 else np.empty(len(codes) + len(lower), np.uint8)
        bits = tensor.bits * len(into) // len(out)
        join(codes, lower, bits, into)
        codes = into


def derive_biases(scales: np.ndarray, zero: float, biases: np.ndarray) -> None:
    """Set `biases` to minus `zero`, the code of a zero weight, times the scales. At INT4's own width the code is 8, and the
    product is exact in every float type."""
    if scales.dtype == np.uint16:  # the raw bits of bfloat16
        wide = np.left_shift(scales, 16, dtype=np.uint32).view(np.float32) * np.float32(-zero)
        biases[...] = to_bytes(wide, "BF16").view(np.uint16).reshape(biases.shape)
    else:
        np.multiply(scales, -zero, out=biases)


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
