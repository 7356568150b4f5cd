"""Slot layout: the names, shapes and types of the tensors that one slot holds, and its size in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from engine.checkpoint.dtypes import FLOATS
from engine.checkpoint.experts import ExpertLayer, ExpertTensor
from engine.model.backend import STORED


@dataclass(frozen=True)
class Requantize:
    """The new width of one projection, which is quantized again when an expert is loaded."""

    group_size: int
    bits: int
    source: dict[str, Any] | None  # group_size, bits and mode in the checkpoint; None: not quantized


def slot_dtype(tensor: ExpertTensor, compute: mx.Dtype | None) -> mx.Dtype:
    """The type of a tensor in its slot: the compute type for floats if there is one, otherwise the stored type."""
    return compute if compute is not None and tensor.dtype in FLOATS else STORED[tensor.dtype]


def slot_tensors(
    layer: ExpertLayer, requantize: dict[str, Requantize], compute: mx.Dtype | None
) -> list[tuple[str, tuple[int, ...], mx.Dtype]]:
    """Name, shape and type of every tensor in one slot. `requantize`: new widths by projection."""
    out = []
    for tensor in layer.tensors:
        new = requantize.get(tensor.projection)
        if new is None or tensor.tensor == "bias":
            out.append((tensor.name, tensor.shape, slot_dtype(tensor, compute)))
            if tensor.projection in layer.zeros and tensor.tensor == "scales":
                out.append((f"{tensor.projection}.biases", tensor.shape, slot_dtype(tensor, compute)))
        elif tensor.tensor == "weight":
            rows, columns = tensor.shape[0], layer.input_dims(tensor.projection)
            scale_dtype = compute or STORED[(layer.tensor(f"{tensor.projection}.scales") or tensor).dtype]
            out.append((tensor.name, (rows, columns * new.bits // 32), mx.uint32))
            for name in ("scales", "biases"):
                out.append((f"{tensor.projection}.{name}", (rows, columns // new.group_size), scale_dtype))
    return out


def goes_straight(tensor: ExpertTensor, requantize: dict[str, Requantize], compute: mx.Dtype | None) -> bool:
    """Whether a tensor's bytes are read into its slot as they are."""
    if tensor.parts or (tensor.projection in requantize and tensor.tensor != "bias"):
        return False
    return slot_dtype(tensor, compute) == STORED[tensor.dtype]


def slot_bytes(layer: ExpertLayer, requantize: dict[str, Requantize], compute: mx.Dtype | None) -> int:
    """Bytes of one slot."""
    return sum(int(np.prod(shape)) * dtype.size for _, shape, dtype in slot_tensors(layer, requantize, compute))
