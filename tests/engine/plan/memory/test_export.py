"""Export: primitives that MLX cannot export have stand-ins."""

from __future__ import annotations

import mlx.core as mx
import pytest

from engine.plan.memory.export import exported


@pytest.mark.parametrize(("mode", "bits", "group_size"), [("mxfp8", 8, 32), ("nvfp4", 4, 16)])
def test_primitives_that_cannot_beexported(mode: str, bits: int, group_size: int) -> None:
    """MLX has no export of FP8 conversions; the stand-ins have the right shape and type, and are gone afterwards."""
    own = mx.dequantize
    codes = mx.quantize(mx.random.normal((64, 128)), group_size=group_size, bits=bits, mode=mode)

    def run(*codes: mx.array) -> list[mx.array]:
        wide = mx.dequantize(*codes, group_size=group_size, bits=bits, mode=mode)
        assert wide.shape == (64, 128) and wide.dtype == mx.bfloat16
        return [wide, mx.from_fp8(mx.to_fp8(wide), mx.bfloat16), mx.contiguous(wide)]

    assert exported(run, list(codes), compiled=True)
    assert mx.dequantize is own
