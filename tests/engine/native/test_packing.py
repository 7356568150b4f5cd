"""Compiled packing against the oracle: weights, kept codes and their levels bit by bit, chosen codes by their errors.

The tests cover engine/native/packing and engine/native/formats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import packing_oracle as oracle
import pytest

from engine.checkpoint.dtypes import from_bytes, to_bytes, to_dtype
from engine.checkpoint.store.bitplanes import pack
from engine.checkpoint.store.records import zero_code
from engine.native import core
from engine.packing.quantize import quantize

ROWS, COLUMNS, BLOCK = 5, 384, (3, 100)
BYTES = {"F32": 4, "F16": 2, "BF16": 2}
HEAVY = {
    "gauss": lambda rng, size: rng.standard_normal(size), "t4": lambda rng, size: rng.standard_t(4, size),
    "laplace": lambda rng, size: rng.laplace(size=size), "log": lambda rng, size: np.exp(8 * rng.random(size) - 4),
}  # fmt: skip


def source(mode: str, dtype: str, weights: np.ndarray, scales: np.ndarray | None = None, **other: Any) -> tuple[Any, ...]:
    how = {"bits": 16, "size": 64, "zero": 0.0, "rows": ROWS, "columns": COLUMNS, "block": BLOCK, "biases": None} | other
    shape = how["rows"], how["columns"], *how["block"]
    return (mode, dtype, how["bits"], how["size"], how["zero"], *shape, weights, scales, how["biases"])


def packed(
    described: tuple[Any, ...], levels: tuple[int, ...], dtype: str, *, exact: bool, symmetric: bool = False
) -> tuple[list[list[np.ndarray]], Any]:
    """The parts of a record, filled with a pattern before packing, and what `pack_projection` returns."""
    weights, groups = described[5] * described[6], described[5] * described[6] // described[3]
    parts = []
    for number, bits in enumerate(levels):
        sizes = groups * BYTES[dtype], groups * BYTES[dtype], weights * (bits if number == 0 else bits // 2) // 8
        parts.append([np.full(size, 0xA5, np.uint8) for size in sizes])
    given = tuple((s, None if symmetric else b, c) for s, b, c in parts)
    target = (dtype, exact, symmetric, levels, tuple(map(zero_code, levels)), given)
    return parts, core.pack_projection(described, target)


@pytest.mark.parametrize("mode", ["fp8", "mxfp4", "mxfp8", "nvfp4", "F32", "F16", "BF16"])
def test_weights_are_decoded_as_by_the_oracle(mode: str) -> None:
    rng = np.random.default_rng(1)
    wide = {"mxfp4": 0.5, "nvfp4": 0.5, "F32": 4, "F16": 2, "BF16": 2}.get(mode, 1)
    weights = rng.integers(0, 256, int(ROWS * COLUMNS * wide), np.uint8)
    scales = None
    if mode == "fp8":
        scales = to_bytes(rng.standard_normal(2 * 4, np.float32), "F32")
    elif mode not in BYTES:
        scales = rng.integers(0, 256, ROWS * COLUMNS // (16 if mode == "nvfp4" else 32), np.uint8)
    name, dtype = ("float", mode) if mode in BYTES else (mode, "F32")
    found = np.empty((ROWS, COLUMNS), np.float32)
    core.decode_weights(source(name, dtype, weights, scales), found)
    with np.errstate(all="ignore"):
        expected = oracle.decode(name, dtype, (ROWS, COLUMNS), BLOCK, weights, scales if scales is not None else weights)
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(("bits", "levels"), [
    (2, (2, 4)), (3, (2, 4)), (4, (2, 4)), (3, (3, 6)), (5, (3, 6)), (6, (3, 6)), (4, (4, 8)), (8, (4, 8)), (4, (2, 4, 8)),
    (5, (2, 4, 8)), (6, (2, 4, 8)), (8, (2, 4, 8)),
])  # fmt: skip
@pytest.mark.parametrize(("size", "dtype"), [(32, "BF16"), (64, "F16"), (128, "F32"), (64, "BF16")])
def test_kept_codes_and_their_levels_are_those_of_the_oracle(
    bits: int, levels: tuple[int, ...], size: int, dtype: str, symmetric: bool
) -> None:
    rng = np.random.default_rng(bits + size)
    codes = rng.integers(0, 1 << bits, (ROWS * COLUMNS // size, size)).astype(np.uint8)
    codes[0], codes[1] = 3, (1 << bits) - 1  # one upper code, and the largest sums
    scales = to_dtype(rng.standard_normal(len(codes), np.float32) / 16, dtype)
    biases = None if symmetric else to_dtype(rng.standard_normal(len(codes), np.float32), dtype)
    scales[2] = 0
    stream = pack(codes.reshape(-1), bits)
    whole = oracle.keep_codes(stream, bits, levels[-1], size, scales, biases)
    weights = whole.codes.astype(np.float64) * whole.scales[:, None] + whole.biases[:, None].astype(np.float64)
    parts, errors, energy = oracle.levels_of(whole, weights, levels, dtype, symmetric)
    described = source(
        "affine", dtype, stream, to_bytes(scales, dtype), bits=bits, size=size, zero=zero_code(bits),
        biases=None if biases is None else to_bytes(biases, dtype),
    )  # fmt: skip
    found, result = packed(described, levels, dtype, exact=True, symmetric=symmetric)
    for ours, expected in zip(found, parts, strict=True):
        assert np.array_equal(ours[2], expected[2])
        for mine, theirs in list(zip(ours, expected, strict=True))[: 1 if symmetric else 2]:
            assert np.allclose(from_bytes(mine, dtype), from_bytes(theirs, dtype), rtol=2**-7, atol=1e-6)
            assert np.mean(mine == theirs) > 0.95  # a sum in another order rarely rounds to another value
    assert np.array_equal(found[-1][0], parts[-1][0])
    assert np.allclose(result[0][:-1], errors[:-1], rtol=1e-4) and result[0][-1] == 0
    assert result[1] == pytest.approx(energy, rel=1e-9)


@pytest.mark.parametrize(("levels", "tolerance"), [((2, 4), 1.01), ((3, 6), 1.0001), ((4, 8), 1.0001), ((2, 4, 8), 1.0001)])
@pytest.mark.parametrize("size", [32, 64, 128])
@pytest.mark.parametrize("name", HEAVY)
def test_chosen_codes_are_as_good_as_the_oracles(name: str, size: int, levels: tuple[int, ...], tolerance: float) -> None:
    drawn = HEAVY[name](np.random.default_rng(size), (1 << 16 >> size.bit_length(), size))
    weights = to_dtype(drawn.astype(np.float32), "BF16").reshape(-1, size)
    whole = oracle.choose_codes(weights, levels, "BF16")
    parts, errors, _ = oracle.levels_of(whole, weights.astype(np.float64), levels, "BF16", False)
    found = quantize(weights, levels, "BF16")
    for ours, expected in zip(found.errors, errors, strict=True):
        assert ours <= expected * tolerance
    if levels != (2, 4):
        assert np.mean(found.codes == whole.codes) > 0.999
        assert np.array_equal(to_bytes(found.scales[-1], "BF16"), parts[-1][0])


def test_an_affine_source_with_too_many_bits_is_quantized_again() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (ROWS * COLUMNS // 64, 64)).astype(np.uint8)
    scales, biases = rng.random((2, len(codes))).astype(np.float32)
    described = source(
        "affine",
        "F32",
        codes.reshape(-1),
        to_bytes(scales, "F32"),
        bits=8,
        zero=zero_code(8),
        biases=to_bytes(biases, "F32"),
    )
    weights = codes * scales[:, None] + biases[:, None]
    out = np.empty_like(weights)
    core.decode_weights(described, out)
    assert np.array_equal(out, weights)
    assert packed(described, (2, 4), "F32", exact=False)[1][0] == quantize(weights.reshape(-1, 64), (2, 4), "F32").errors


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_scales_that_are_not_finite_are_refused(wrong: float) -> None:
    scales = np.ones(ROWS * COLUMNS // 64, np.float32)
    scales[3] = wrong
    stream, biases = np.zeros(ROWS * COLUMNS // 2, np.uint8), np.zeros(len(scales), np.float32)
    for given in ((scales, biases), (biases, scales)):
        described = source("affine", "F32", stream, given[0], bits=4, zero=8.0, biases=given[1])
        assert packed(described, (2, 4), "F32", exact=True)[1] is None


def changed(described: tuple[Any, ...], at: int, value: Any) -> tuple[Any, ...]:
    return (*described[:at], value, *described[at + 1 :])


@pytest.mark.parametrize(("at", "value", "message"), [
    (0, "int3", "a format must be"), (1, "I32", "a type must be"), (3, 48, "groups must have"), (5, 0, "the rows must"),
    (6, 385, "groups must have"), (6, 448, "weights: 3840 bytes, not 4480"), (7, 0, "blocks must have"),
    (9, np.zeros(7, np.uint8), "weights: 7 bytes, not 3840"),
], ids=str)  # fmt: skip
def test_a_source_that_does_not_fit_is_refused(at: int, value: Any, message: str) -> None:
    described = source("float", "BF16", np.zeros(ROWS * COLUMNS * 2, np.uint8))
    with pytest.raises(ValueError, match=message):
        core.decode_weights(changed(described, at, value), np.empty((ROWS, COLUMNS), np.float32))


@pytest.mark.parametrize(("at", "value", "message"), [
    (0, "U8", "a type must be"), (1, True, "only affine codes"), (2, True, "has biases"), (3, (2, 3), "twice the bits"),
    (3, (4,), "two or three levels"), (4, (0.0,), "a zero and parts"), (5, (), "a zero and parts"),
], ids=str)  # fmt: skip
def test_a_target_that_does_not_fit_is_refused(at: int, value: Any, message: str) -> None:
    described = source("float", "BF16", np.zeros(ROWS * COLUMNS * 2, np.uint8))
    part = tuple(np.zeros(size, np.uint8) for size in (60, 60, 480))
    target = ("BF16", False, False, (2, 4), (0.0, 0.0), (part, part))
    assert core.pack_projection(described, target) is not None
    with pytest.raises(ValueError, match=message):
        core.pack_projection(described, changed(target, at, value))
    with pytest.raises(ValueError, match="a part of codes: 481 bytes, not 480"):
        core.pack_projection(described, changed(target, 5, (part, (*part[:2], np.zeros(481, np.uint8)))))
