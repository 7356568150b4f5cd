"""Bit planes: codes packed as MLX packs them, split into halves and joined again, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from engine.checkpoint.store.bitplanes import BLOCK, CHUNK, column_order, halve, join, pack, unpack

WIDTHS = (2, 3, 4, 5, 6, 8)


def codes(bits: int, count: int = 32 * 37) -> np.ndarray:
    return np.random.default_rng(bits).integers(0, 1 << bits, count).astype(np.uint8)


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_stream_is_one_little_endian_number(bits: int) -> None:
    found = codes(bits)
    number = sum(int(code) << (bits * place) for place, code in enumerate(found))
    stream = pack(found, bits)
    assert stream.dtype == np.uint8 and stream.tobytes() == number.to_bytes(len(found) * bits // 8, "little")
    assert np.array_equal(unpack(stream, bits), found)


@pytest.mark.parametrize("bits", WIDTHS)
def test_codes_of_mx_quantize(bits: int) -> None:
    weights = mx.random.normal((6, 160), key=mx.random.key(bits))
    stream, scales, biases = mx.quantize(weights, group_size=32, bits=bits)
    found = unpack(np.array(stream).view(np.uint8).reshape(-1), bits).reshape(-1, 32)
    ours = found * np.array(scales).reshape(-1, 1) + np.array(biases).reshape(-1, 1)
    assert np.array_equal(ours.reshape(6, 160), np.array(mx.dequantize(stream, scales, biases, group_size=32, bits=bits)))


@pytest.mark.parametrize("count", [32, 96, 32 * 37, 64 * CHUNK + 32 * 3])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_halves_join(bits: int, count: int) -> None:
    stream = pack(codes(bits, count), bits)
    high, low = halve(stream, bits)
    assert len(high) == len(low) == len(stream) // 2
    again = np.empty_like(stream)
    join(high, low, bits, again)
    assert np.array_equal(again, stream)


@pytest.mark.parametrize(("bits", "times"), [(4, 1), (6, 1), (8, 1), (8, 2)])
def test_the_upper_stream_is_made_of_codes_with_columns_in_another_order(bits: int, times: int) -> None:
    found = codes(bits)
    stream, width = pack(found, bits), bits
    for _ in range(times):
        stream, _ = halve(stream, width)
        width //= 2
    order = column_order(bits, times)
    assert sorted(order) == list(range(BLOCK))
    expected = (found >> (bits - width)).reshape(-1, BLOCK)[:, order]
    assert np.array_equal(unpack(stream, width).reshape(-1, BLOCK), expected)


def test_orders_as_documented() -> None:
    """The codes of two words alternate; words of 6-bit codes have 24 bits."""
    assert column_order(4, 1).tolist() == [c + 16 * w for c in range(16) for w in (0, 1)]
    assert column_order(6, 1).tolist() == [8 * b + c + 4 * w for b in range(4) for c in range(4) for w in (0, 1)]
    eight = [16 * b + c + 8 * w for b in (0, 1) for c in range(8) for w in (0, 1)]
    assert column_order(8, 1).tolist() == eight
    assert column_order(8, 2).tolist() == [eight[c + 16 * w] for c in range(16) for w in (0, 1)]
    assert column_order(8, 0).tolist() == list(range(32))
