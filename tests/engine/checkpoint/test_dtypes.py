"""Element types round as MLX rounds them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.checkpoint.dtypes import from_bytes, to_bytes

RNG = np.random.default_rng(5)
MLX = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}


@pytest.mark.parametrize("dtype", MLX)
def test_types_round_as_mlx_does(dtype: str) -> None:
    values = np.concatenate([RNG.standard_normal(5000) * 10.0 ** RNG.integers(-6, 4, 5000), [0, 1, -1, 65504]])
    values = values.astype(np.float32)
    expected = mx.array(values).astype(MLX[dtype]).astype(mx.float32)
    assert np.array_equal(from_bytes(to_bytes(values, dtype), dtype), np.array(expected))
