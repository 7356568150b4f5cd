"""Conversions from the bytes of a file to a slot: exact where they must be."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.cache.convert import derive_biases, join_streams, requantized, to_float32, to_mlx
from engine.cache.slot_layout import Requantize
from engine.checkpoint.dtypes import from_bytes, to_bytes
from engine.checkpoint.experts import ExpertTensor
from engine.checkpoint.store.bitplanes import halve

NOWHERE = np.zeros(1, np.int64)


def tensor(dtype: str, shape: tuple[int, ...], bits: int = 0) -> ExpertTensor:
    return ExpertTensor("up_proj", "weight", dtype, shape, NOWHERE, NOWHERE, bits=bits)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_widening_is_exact(dtype: str) -> None:
    stored = to_bytes(np.random.default_rng(0).standard_normal(12).astype(np.float32), dtype)
    target = np.empty((3, 4), np.float32)
    to_float32(stored.data, tensor(dtype, (3, 4)), target)
    assert np.array_equal(target.reshape(-1), from_bytes(stored, dtype))


@pytest.mark.parametrize("levels", [(4, 8), (2, 4, 8)])
def test_streams_are_joined(levels: tuple[int, ...]) -> None:
    whole = np.random.default_rng(1).integers(0, 256, 512, np.uint8)
    streams: list[np.ndarray] = []
    upper = whole
    for bits in reversed(levels[1:]):
        upper, lower = halve(upper, bits)
        streams.insert(0, lower)
    target = np.empty((8, 16), np.uint32)
    join_streams([s.data for s in (upper, *streams)], tensor("U32", (8, 16), bits=levels[-1]), target)
    assert np.array_equal(target.reshape(-1).view(np.uint8), whole)


def test_biases_of_int4() -> None:
    scales = to_bytes(np.array([0.5, -0.25, 3.0], np.float32), "BF16").view(np.uint16)
    biases = np.empty_like(scales)
    derive_biases(scales, 8.0, biases)
    assert from_bytes(biases.view(np.uint8), "BF16").tolist() == [-4.0, 2.0, -24.0]
    wide, out = np.array([0.5, 1.5], np.float32), np.empty(2, np.float32)
    derive_biases(wide, 8.0, out)
    assert out.tolist() == [-4.0, -12.0]


def test_new_codes_equal_those_of_mlx() -> None:
    weight = mx.random.normal((8, 64), key=mx.random.key(0))
    found = requantized({"weight": weight}, Requantize(32, 4, None))
    assert all(mx.array_equal(a, b) for a, b in zip(found, mx.quantize(weight, group_size=32, bits=4), strict=True))
    stored = to_bytes(np.array(weight).reshape(-1), "BF16")
    array = to_mlx(stored.data, tensor("BF16", (8, 64)), mx.float32)
    assert array.dtype == mx.float32 and np.array_equal(np.array(array).reshape(-1), from_bytes(stored, "BF16"))
