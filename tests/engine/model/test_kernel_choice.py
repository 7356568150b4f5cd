"""Tests of the number of rows with which MLX takes the kernel of the whole prompt."""

from __future__ import annotations

import inspect

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlx_lm.models import switch_layers

from engine.model.kernel_choice import SORTED, parts_alike


def kernel(backend: str, rows: int, experts: int, quantized: bool) -> str:
    """The kernel that MLX takes, after its own conditions."""
    is_sorted = rows >= 64
    if not quantized:
        return "sorted" if is_sorted else "vector"
    if backend == "cuda":
        return "vector" if rows < 8 else "matrix"
    return "sorted" if is_sorted and rows // experts >= 4 else "vector"


@given(st.sampled_from(["cuda", "metal"]), st.booleans(), st.integers(1, 64), st.data())
def test_the_kernel_is_that_of_the_whole_prompt(backend: str, quantized: bool, experts: int, data: st.DataObject) -> None:
    slots, total = data.draw(st.integers(1, experts)), data.draw(st.integers(1, 3000))
    rows = data.draw(st.integers(1, total))
    count, least = parts_alike(backend, rows, total, experts=experts, slots=slots, quantized=quantized)
    assert 1 <= count <= rows
    sizes = [rows // count + (number < rows % count) for number in range(count)]
    assert sum(sizes) == rows
    for size in sizes:
        assert kernel(backend, max(size, least), slots, quantized) == kernel(backend, total, experts, quantized)


def test_the_cpu_computes_whatever_it_is_given() -> None:
    assert parts_alike("cpu", 3, 3000, experts=64, slots=8, quantized=True) == (1, 0)


@pytest.mark.parametrize("switch", [switch_layers.SwitchGLU, switch_layers.SwitchMLP])
def test_mlx_lm_sorts_from_so_many_rows_on(switch: type) -> None:
    assert f"indices.size >= {SORTED}" in inspect.getsource(switch.__call__)
