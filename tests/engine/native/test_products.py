"""Products: the extension's cblas_sgemm, compared bit by bit with sums in the order of the reference BLAS.

The tests cover engine/native/products.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import Any

import numpy as np
import pytest

from engine.native import core

ROWS, COLUMNS = 101, 102  # which are adjacent, as in cblas.h
PLAIN, TRANSPOSED = 111, 112

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="the function is for Linux on x86-64"
)


def product(order: int, forms: tuple[int, int], alpha: float, operands: Any, beta: float, c: np.ndarray) -> None:
    """c = alpha a b + beta c by the extension; `operands` are a [m, k] and b [k, n], each with the space after a line."""
    (a, _), (b, _) = operands
    memory = [_memory(matrix, order, form, space) for (matrix, space), form in zip(operands, forms, strict=True)]
    out, ldc = _memory(c, order, PLAIN, 2)
    sizes = a.shape[0], b.shape[1], a.shape[1]
    real, pointer = ctypes.c_float, ctypes.c_void_p
    ctypes.CDLL(core.__file__).cblas_sgemm(
        order, *forms, *sizes, real(alpha), pointer(memory[0][0].ctypes.data), memory[0][1],
        pointer(memory[1][0].ctypes.data), memory[1][1], real(beta), pointer(out.ctypes.data), ldc,
    )  # fmt: skip
    lines = out.reshape(-1, ldc)
    assert np.isnan(lines[:, -2:]).all(), "it wrote between the lines"
    c[:] = lines[:, :-2] if order == ROWS else lines[:, :-2].T


def _memory(matrix: np.ndarray, order: int, form: int, space: int) -> tuple[np.ndarray, int]:
    """A matrix as it lies in memory, with `space` values that are no numbers after each line, and the length of a line."""
    lines = matrix if (order == ROWS) == (form == PLAIN) else matrix.T
    room = np.full((lines.shape[0], lines.shape[1] + space), np.nan, np.float32)
    room[:, : lines.shape[1]] = lines
    return room.ravel(), room.shape[1]


def expected(
    order: int, forms: tuple[int, int], alpha: float, a: np.ndarray, b: np.ndarray, beta: float, c: np.ndarray
) -> np.ndarray:
    """The reference's sums in float32 (sgemm.f): its first operand is the one whose columns are adjacent."""
    last = forms[1] if order == ROWS else forms[0]
    one, two = np.float32(alpha), np.float32(beta)
    begin = np.zeros_like(c) if beta == 0 else two * c
    if alpha == 0:
        return begin
    if last == TRANSPOSED:
        terms = np.zeros_like(c)
        for i in range(a.shape[1]):
            terms += a[:, i : i + 1] * b[i : i + 1]
        return one * terms if beta == 0 else one * terms + two * c
    for i in range(a.shape[1]):
        scaled = (one * a[:, i : i + 1]) * b[i : i + 1] if order == ROWS else a[:, i : i + 1] * (one * b[i : i + 1])
        begin += scaled
    return begin


@pytest.mark.parametrize("order", [ROWS, COLUMNS])
@pytest.mark.parametrize("forms", [(x, y) for x in (PLAIN, TRANSPOSED) for y in (PLAIN, TRANSPOSED)])
def test_the_bits_of_the_reference(order: int, forms: tuple[int, int]) -> None:
    random = np.random.default_rng(order + sum(forms))
    for number in range(120):
        m, n, k = (int(size) for size in random.integers(1, random.choice([4, 20, 150]), 3))
        a, b, c = (random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n), (m, n)))
        alpha, beta = float(random.choice([1, 1, 0.3, 0])), float(random.choice([0, 0, 1, 0.7]))
        wanted = expected(order, forms, alpha, a, b, beta, c)
        before = core.products()
        product(order, forms, alpha, ((a, number % 3), (b, number % 2)), beta, c)
        assert core.products() == before + 1
        assert np.array_equal(c.view(np.uint32) << 1, wanted.view(np.uint32) << 1), f"{m} x {n} x {k}, {alpha}, {beta}"


@pytest.mark.parametrize("rows", [1, 5, 6, 31, 32, 70])
def test_values_of_any_kind_stay_in_their_row_and_column(rows: int) -> None:
    a, b = np.ones((rows, 7), np.float32), np.ones((7, 70), np.float32)
    a[rows - 1, 2], b[3, 69], c = np.inf, np.nan, np.zeros((rows, 70), np.float32)
    product(ROWS, (PLAIN, PLAIN), 1, ((a, 0), (b, 0)), 0, c)
    assert np.isinf(c[-1, :69]).all()
    assert np.isnan(c[:, 69]).all()
    assert (c[:-1, :69] == 7).all()


def test_nothing_to_multiply() -> None:
    c = np.full((3, 5), 2, np.float32)
    product(ROWS, (PLAIN, PLAIN), 1, ((np.zeros((3, 0), np.float32), 1), (np.zeros((0, 5), np.float32), 0)), 0.5, c)
    assert (c == 1).all()
