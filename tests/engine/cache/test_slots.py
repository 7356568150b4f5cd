"""Slot arrays: their addresses, and computing on them without a copy."""

from __future__ import annotations

import mlx.core as mx
import pytest

from engine.cache.slots import SlotArray


@pytest.mark.parametrize("dtype", [mx.uint32, mx.float32, mx.bfloat16, mx.uint8])
@pytest.mark.parametrize("phase", [0, 8, 1000, 4092])
def test_slots_begin_where_in_a_page_the_file_does(dtype: mx.Dtype, phase: int) -> None:
    if mx.default_device() != mx.Device(mx.cpu):
        phase = 0
    slots = SlotArray(3, (5, 64), dtype, phase)
    assert slots.memory.ctypes.data % 4096 == phase
    assert slots.memory[1].nbytes == 5 * 64 * dtype.size
    slots.memory[1] = 1
    seen = slots.array.view(mx.uint16) if dtype == mx.bfloat16 else slots.array
    assert seen[1].sum().item() == 320 and seen[0].sum().item() == seen[2].sum().item() == 0


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="only there the slots begin inside a buffer")
def test_mlx_computes_on_slots_without_copying_them() -> None:
    shapes = {"weight": ((256, 32), mx.uint32), "scales": ((256, 4), mx.float32), "biases": ((256, 4), mx.float32)}
    arrays = {name: SlotArray(64, shape, dtype, 1000).array for name, (shape, dtype) in shapes.items()}
    x, chosen = mx.ones((1, 1, 256)), mx.array([[3, 9, 60]], dtype=mx.uint32)
    mx.eval(x, chosen)
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    y = mx.gather_qmm(x, arrays["weight"], arrays["scales"], arrays["biases"], rhs_indices=chosen, group_size=64, bits=4)
    mx.eval(y)
    assert mx.get_peak_memory() - before < arrays["scales"].nbytes
