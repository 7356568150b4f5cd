"""Conversions by MLX from the bytes of a file: new codes, and stored floats."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from engine.cache.convert import requantized, to_mlx
from engine.cache.slot_layout import Requantize
from engine.checkpoint.dtypes import from_bytes, to_bytes
from engine.checkpoint.experts import ExpertTensor

NOWHERE = np.zeros(1, np.int64)


def tensor(dtype: str, shape: tuple[int, ...], bits: int = 0) -> ExpertTensor:
    return ExpertTensor("up_proj", "weight", dtype, shape, NOWHERE, NOWHERE, bits=bits)


def test_new_codes_equal_those_of_mlx() -> None:
    weight = mx.random.normal((8, 64), key=mx.random.key(0))
    found = requantized({"weight": weight}, Requantize(32, 4, None))
    assert all(mx.array_equal(a, b) for a, b in zip(found, mx.quantize(weight, group_size=32, bits=4), strict=True))
    stored = to_bytes(np.array(weight).reshape(-1), "BF16")
    array = to_mlx(stored.data, tensor("BF16", (8, 64)), mx.float32)
    assert array.dtype == mx.float32 and np.array_equal(np.array(array).reshape(-1), from_bytes(stored, "BF16"))
