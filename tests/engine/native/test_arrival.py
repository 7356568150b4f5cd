"""Arrival: native CRC-32, widening, bit planes and biases, compared bit by bit with zlib and numpy.

The tests cover engine/native/arrival and engine/native/bitplanes.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from arrival_oracle import derive_biases, join_streams

from engine.checkpoint.dtypes import from_bytes
from engine.checkpoint.store import bitplanes
from engine.native import core

RANDOM = np.random.default_rng(0)
EVERY = np.arange(1 << 16, dtype=np.uint16)  # all codes of a 16-bit type
LEVELS = [(2, 4), (3, 6), (4, 8), (2, 4, 8)]


def unaligned(count: int, start: int = 1) -> np.ndarray:
    """`count` random bytes whose memory starts at an odd address."""
    return RANDOM.integers(0, 256, count + start, np.uint8)[start:]


def test_crc32_of_every_short_length() -> None:
    data = unaligned(320)
    for size in range(301):
        for start in (0, 1, 7, 16):
            part = data[start : start + size].data
            assert core.crc32(part) == zlib.crc32(part)


def test_crc32_of_long_data_and_continued() -> None:
    data = unaligned(3_000_017)
    for _ in range(60):
        begin, end = sorted(RANDOM.integers(0, len(data), 2).tolist())
        value = int(RANDOM.integers(0, 1 << 32))
        assert core.crc32(data[begin:end].data, value) == zlib.crc32(data[begin:end].data, value)
    assert core.crc32(data[1000:].data, core.crc32(data[:1000].data)) == zlib.crc32(data.data)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_widening_every_code(dtype: str) -> None:
    expected = from_bytes(EVERY.view(np.uint8), dtype)
    found = np.empty(len(EVERY), np.float32)
    core.widen(EVERY, found, dtype)
    signalling = np.isnan(expected) & (EVERY & 0x0200 == 0)  # some processors set the quiet bit when numpy converts
    quiet = np.where(signalling & (dtype == "F16"), 0x00400000, 0).astype(np.uint32)
    assert np.array_equal(found.view(np.uint32) | quiet, expected.view(np.uint32) | quiet)


@pytest.mark.parametrize("count", [0, 1, 7, 33])
def test_widening_needs_no_alignment(count: int) -> None:
    source, target = unaligned(2 * count), unaligned(4 * count)
    core.widen(source, target, "F16")
    assert np.array_equal(target.copy().view(np.float32), source.copy().view(np.float16).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize("zero", [8.0, 128.0, 32.0, 3.75, 1.625, 0.1, 0.0, -2.0, 1e5])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_biases_of_every_code(dtype: str, zero: float) -> None:
    scales = EVERY.view(np.float16) if dtype == "F16" else EVERY
    expected, found = np.empty_like(scales), np.empty_like(scales)
    with np.errstate(all="ignore"):
        derive_biases(scales, zero, expected)
    core.derive_biases(scales, zero, found, dtype)
    assert np.array_equal(found.view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("count", [0, 5, 1001])
def test_biases_of_float32(count: int) -> None:
    scales = unaligned(4 * count, 4).view(np.float32)
    expected, found = np.empty_like(scales), np.empty_like(scales)
    with np.errstate(all="ignore"):
        derive_biases(scales, 3.75, expected)
    core.derive_biases(scales, 3.75, found, "F32")
    assert np.array_equal(found.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("count", [0, 32, 96, 32 * 37, 32 * 1025])
@pytest.mark.parametrize("levels", LEVELS)
def test_planes_join(levels: tuple[int, ...], count: int) -> None:
    count *= len(levels) - 1
    sizes = [count * bits // 8 for bits in (levels[0], *levels[:-1])]
    streams = [unaligned(size) for size in sizes]
    expected, found = np.empty(sum(sizes), np.uint8), unaligned(sum(sizes))
    if count:
        join_streams([s.data for s in streams], levels[-1], expected)
    core.join_planes([s.data for s in streams], levels[-1], found)
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("count", [32, 96, 32 * 1025])
@pytest.mark.parametrize("bits", [4, 6, 8])
def test_planes_split(bits: int, count: int) -> None:
    stream = unaligned(count * bits // 8)
    upper, lower = unaligned(len(stream) // 2), unaligned(len(stream) // 2)
    core.halve_planes(stream, bits, upper, lower)
    expected = bitplanes.halve(stream.copy(), bits)
    assert np.array_equal(upper, expected[0]) and np.array_equal(lower, expected[1])


def test_wrong_sizes_and_types_are_refused() -> None:
    one, two, readonly = bytearray(16), bytearray(32), bytes(32)
    with pytest.raises(ValueError, match="16 bytes of F16 do not widen to 16 bytes"):
        core.widen(one, one, "F16")
    with pytest.raises(ValueError, match="dtype is BF16 or F16, not F32"):
        core.widen(one, two, "F32")
    with pytest.raises(TypeError, match="read-write"):
        core.widen(one, readonly, "F16")
    with pytest.raises(ValueError, match="16 bytes of F32 scales do not give 32 bytes of biases"):
        core.derive_biases(one, 8.0, two, "F32")
    for streams, bits in [([one], 8), ([one, two], 8), ([one, one], 5), ([one, one], 6), ([one, one, two], 4)]:
        with pytest.raises(ValueError, match=f"do not join into codes of {bits} bits"):
            core.join_planes(streams, bits, two)
    with pytest.raises(ValueError, match="4 streams; at most 3 join"):
        core.join_planes([one] * 4, 8, two)
    with pytest.raises(ValueError, match="out has 16 bytes, the streams 32"):
        core.join_planes([one, one], 8, one)
    with pytest.raises(ValueError, match="17 bytes are not whole pairs of words of 4-bit codes"):
        core.halve_planes(bytearray(17), 4, one, one)
    with pytest.raises(ValueError, match="the halves have 16 and 32 bytes; 32 bytes split into two of 16"):
        core.halve_planes(two, 8, one, two)
    wrong: Any
    for wrong in (None, 3, "text"):
        with pytest.raises(TypeError):
            core.join_planes([one, wrong], 8, two)
