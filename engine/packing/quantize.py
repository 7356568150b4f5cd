"""Quantization: codes and grids (scale, bias) for groups of weights, as a record has them at every level.

The codes of the highest level are fixed first. A lower level has their upper bits. Its scale and bias are the line through
the group's weights over these upper codes with the smallest squared error. A source in MLX's affine format keeps its codes.
For other sources the codes are chosen. With levels of 2 and 4 bits they are chosen so that both levels are good:

1. For a few grids over smaller and shifted parts of a group's range, the weights' places in 128 bins estimate the error e4
   of the highest level and the error e2 of the lowest one. The grid with the smallest e2 + PRICE e4 is taken.
2. Both grids are refitted to the codes, and the codes to both grids, for the same sum: a weight near the border of two upper
   codes goes to the side that is better for both levels together, which is not always the side of the nearest code.
3. The error of the highest level over a run of rows must not exceed that of mx.quantize. If it does, the groups that lose
   most take the grid and codes of mx.quantize.

`python -m engine bench grids` measures the gain. Compiled code does the arithmetic (engine/native/packing). Every sum has
one order, whatever the CPU, its vectors and the number of threads, so a record has the same bytes on every machine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.checkpoint.dtypes import ITEM_BYTES, from_bytes
from engine.checkpoint.store.bitplanes import join, unpack
from engine.native import core


class Quantized(NamedTuple):
    """Groups of weights in a record."""

    codes: np.ndarray  # of the highest level, uint8 [groups, group_size]
    scales: list[np.ndarray]  # of each level, float32 [groups]
    biases: list[np.ndarray]
    errors: tuple[float, ...]  # squared, of each level, over all groups


def quantize(weights: np.ndarray, levels: tuple[int, ...], dtype: str) -> Quantized:
    """Quantize float32 weights [groups, group_size] as one projection of a record with these `levels`. `dtype`: the stored
    type of scales and biases. Raises `FloatingPointError` for weights that are not finite."""
    groups, size = weights.shape
    new_bits = [bits if number == 0 else bits // 2 for number, bits in enumerate(levels)]
    scales, biases = np.empty((2, len(levels), groups * ITEM_BYTES[dtype]), np.uint8)
    planes = [np.empty(weights.size * bits // 8, np.uint8) for bits in new_bits]
    source = ("float", "F32", 16, size, 0.0, groups, size, 1, 1, np.ascontiguousarray(weights, np.float32), None, None)
    parts = tuple(zip(scales, biases, planes, strict=True))
    packed = core.pack_projection(source, (dtype, False, False, levels, (0.0,) * len(levels), parts))
    if packed is None:
        raise FloatingPointError("weights are not finite")
    stream = planes[0]
    for lower, bits in zip(planes[1:], levels[1:], strict=True):
        joined = np.empty(2 * stream.size, np.uint8)
        join(stream, lower, bits, joined)
        stream = joined
    codes = unpack(stream, levels[-1]).reshape(weights.shape)
    return Quantized(codes, [from_bytes(s, dtype) for s in scales], [from_bytes(b, dtype) for b in biases], packed[0])
