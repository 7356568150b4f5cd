"""What becomes of an expert's bytes on arrival, in numpy: the oracle of the native code."""

from __future__ import annotations

import numpy as np

from engine.checkpoint.dtypes import to_bytes
from engine.checkpoint.store.bitplanes import join


def join_streams(views: list[memoryview], width: int, target: np.ndarray) -> None:
    """Join the streams of packed codes, the upper bits first, into `target`, codes of `width` bits."""
    streams = [np.frombuffer(view, np.uint8) for view in views]
    out = target.reshape(-1).view(np.uint8)
    codes = streams[0]
    for number, lower in enumerate(streams[1:], start=1):
        into = out if number == len(streams) - 1 else np.empty(len(codes) + len(lower), np.uint8)
        bits = width * len(into) // len(out)
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
