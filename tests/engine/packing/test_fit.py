"""Least squares: the fitted line has the smallest error, and sums from tables equal sums over codes."""

from __future__ import annotations

import numpy as np
import pytest

from engine.checkpoint.store.bitplanes import pack
from engine.packing.fit import Sums, error, fit, sums, sums_of_codes
from engine.packing.quantize import upper_bits

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize(("width", "top", "bits"), [(4, 4, 2), (8, 4, 2), (8, 6, 3), (8, 8, 4), (8, 8, 2)])
def test_sums_of_codes_are_those_of_the_codes(width: int, top: int, bits: int, size: int) -> None:
    codes = np.random.default_rng(size).integers(0, 1 << top, (50, size)).astype(np.uint8)
    codes[0], codes[1] = 0, (1 << top) - 1  # the largest sums
    stream = pack(codes.reshape(-1), 4) if width == 4 else codes.reshape(-1)
    found = sums_of_codes(stream, width, top, bits, size)
    v, h = codes.astype(np.float64), (codes >> (top - bits)).astype(np.float64)
    for ours, expected in zip(found, (v, h, v * v, h * h, v * h), strict=True):
        assert np.array_equal(ours, expected.sum(axis=1))


@pytest.mark.parametrize("zeros", [None, (1.625, 8.0)])
def test_the_fit_is_the_least(zeros: tuple[float, float] | None) -> None:
    codes = np.random.default_rng(0).integers(0, 16, (40, 64)).astype(np.float32)
    codes[0] = 5  # one upper code: any slope is as good
    found = sums(codes, upper_bits(codes, 2))
    line = fit(found, 64, zeros)
    squares = (codes - line.slope[:, None] * np.floor(codes / 4) - line.offset[:, None]) ** 2
    assert np.allclose(line.error, squares.sum(axis=1), atol=2e-2)
    assert np.allclose(error(found, 64, line.slope, line.offset), squares.sum(axis=1), atol=2e-2)
    if zeros is not None:
        assert np.allclose(line.slope * zeros[0] + line.offset, zeros[1], rtol=1e-5)
    for change in (0.99, 1.01):
        slope = line.slope * change
        shifted = line.offset * change if zeros is None else zeros[1] - zeros[0] * slope
        assert (error(found, 64, slope, shifted) >= line.error - 2e-2).all()


def test_known_sums_are_not_computed_again() -> None:
    values, codes = RNG.standard_normal((2, 5, 32)).astype(np.float32)
    known = sums(values, codes)
    again = sums(values, codes * 2, known)
    assert again.v is known.v and again.vv is known.vv and np.allclose(again.h, 2 * known.h)
    assert isinstance(again, Sums)
