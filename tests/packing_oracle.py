"""Oracle: decoding, quantization and the levels of a record in numpy, as the specification of the compiled code.

Groups are rows: arrays are [groups, group_size]. Sums are float32 where the compiled code has float32, float64 elsewhere.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.checkpoint.dtypes import from_bytes, to_bytes, to_dtype
from engine.checkpoint.store.bitplanes import halve, pack, unpack
from engine.checkpoint.store.records import zero_code

SMALLEST = np.float32(1e-7)  # scale, as in mx.quantize
PRICE, BINS, INSIDE = 2.75, 64, 16
PARTS, SHIFTS = (0.95, 0.9, 0.85), (-0.8, -0.4, 0.0, 0.4, 0.8)
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


class Line(NamedTuple):
    """The line value = slope * code + offset of each group; arrays [groups]."""

    slope: np.ndarray
    offset: np.ndarray


class Top(NamedTuple):
    """Groups at the highest level."""

    codes: np.ndarray  # [groups, group_size]
    scales: np.ndarray  # float32 [groups], rounded to the stored type
    biases: np.ndarray
    errors: np.ndarray  # squared


def e4m3() -> np.ndarray:
    """Values of the 256 codes of FP8 E4M3."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    size[(code & 127) == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


def decode(mode: str, dtype: str, shape: tuple[int, int], block: tuple[int, int], weights: np.ndarray, scales: np.ndarray):
    """float32 [rows, columns] of stored weights and scales (uint8 [bytes]) in one of the formats that are not affine."""
    if mode == "float":
        return from_bytes(weights, dtype).reshape(shape)
    if mode == "fp8":
        across = -(-shape[1] // block[1])
        factors = from_bytes(scales, dtype).reshape(-1, across)[np.arange(shape[0]) // block[0]]
        factors = np.repeat(factors, block[1], axis=1)[:, : shape[1]]
        return to_dtype(e4m3()[weights].reshape(shape) * factors, "BF16").reshape(shape)
    values = e4m3()[weights] if mode == "mxfp8" else E2M1[unpack(weights, 4)]
    factors = e4m3()[scales] if mode == "nvfp4" else np.exp2(scales.astype(np.float32) - 127)
    return (values.reshape(len(factors), -1) * factors[:, None]).reshape(shape)


def fit(v: np.ndarray, h: np.ndarray, zeros: tuple[float, float] | None = None) -> Line:
    """The least-squares line through values v over codes h, both [groups, size]. With `zeros`, the code and the value of a
    zero weight, the line goes through that point."""
    v, h, size = v.astype(np.float64), h.astype(np.float64), v.shape[1]
    if zeros is not None:
        spread, together = ((h - zeros[0]) ** 2).sum(axis=1), ((v - zeros[1]) * (h - zeros[0])).sum(axis=1)
        slope = np.divide(together, spread, out=np.ones_like(spread), where=spread > 0)
        return Line(slope, zeros[1] - zeros[0] * slope)
    spread = (h * h).sum(axis=1) - h.sum(axis=1) ** 2 / size
    together = (v * h).sum(axis=1) - v.sum(axis=1) * h.sum(axis=1) / size
    slope = np.divide(together, spread, out=np.ones_like(spread), where=spread >= 0.5 / size)
    return Line(slope, (v.sum(axis=1) - slope * h.sum(axis=1)) / size)


def nearest_codes(at: np.ndarray, step: np.ndarray, origin: np.ndarray, bits: int) -> np.ndarray:
    """The nearest codes on a grid, as float32."""
    return np.clip(np.rint((at - origin[:, None]) * (1 / step)[:, None]), 0, (1 << bits) - 1)


def squares(at: np.ndarray, codes: np.ndarray, step: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Squared error of each group on a grid."""
    return ((codes * step[:, None] + origin[:, None] - at) ** 2).sum(axis=1)


def on_mlx_grid(weights: np.ndarray, bits: int, dtype: str) -> Top:
    """Codes and grids as mx.quantize computes them: a grid starts at the end of the range that is further from 0, and 0 is
    one of its points."""
    low, high = weights.min(axis=1), weights.max(axis=1)
    from_below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32((1 << bits) - 1), SMALLEST)
    scale, edge = np.where(from_below, scale, -scale), np.where(from_below, low, high)
    at_zero = np.rint(edge / scale)
    scale = to_dtype(np.where(at_zero == 0, scale, edge / np.where(at_zero == 0, 1, at_zero)), dtype)
    bias = to_dtype(np.where(at_zero == 0, 0, edge), dtype)
    codes = nearest_codes(weights, scale, bias, bits)
    return Top(codes, scale, bias, squares(weights, codes, scale, bias))


def first_grid(at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Step and origin of the best 4-bit grid among `PARTS` and `SHIFTS` for each group, in units of `at`, estimated from a
    histogram whose bins count as evenly filled."""
    steps, shifts = (g.reshape(-1, 1, 1) for g in np.meshgrid(PARTS, SHIFTS, indexing="ij"))
    origins, size = (15 - 15 * steps) / 2 + shifts * steps, at.shape[1]
    v = ((np.arange(BINS * INSIDE) + 0.5) * 15 / (BINS * INSIDE)).reshape(BINS, INSIDE)
    codes = np.clip(np.rint((v - origins) / steps), 0, 15)
    h, off = codes // 4, (v - origins - codes * steps) ** 2
    bins = (at * np.float32((BINS - 1e-3) / 15)).astype(np.int64) + np.arange(0, len(at) * BINS, BINS)[:, None]
    counts = np.bincount(bins.reshape(-1), minlength=len(at) * BINS).reshape(len(at), BINS)
    h, hh, vh, error = (counts @ part.mean(axis=-1).T for part in (h, h * h, v * h, off))
    together = vh - (counts @ v.mean(axis=-1))[:, None] * h / size
    best = (PRICE * error - together**2 / np.maximum(hh - h * h / size, 0.5 / size)).argmin(axis=1)
    return steps.reshape(-1).astype(np.float32)[best], origins.reshape(-1).astype(np.float32)[best]


def shaped(weights: np.ndarray, dtype: str) -> Top:
    """Codes of 4 bits that are good at 2 bits too."""
    low, high = weights.min(axis=1), weights.max(axis=1)
    unit = np.maximum((high - low) / np.float32(15), SMALLEST)
    at = (weights - low[:, None]) * (1 / unit)[:, None]
    codes = nearest_codes(at, *first_grid(at), 4)
    (step, origin), (coarse, coarse_origin) = fit(at, codes), fit(at, codes // 4)
    scale, bias = to_dtype(np.maximum(step * unit, SMALLEST), dtype), to_dtype(low + origin * unit, dtype)
    step, origin = scale / unit, (bias - low) / unit
    fine, total = PRICE * step, PRICE * step + coarse
    slope = (fine * 4 * step + coarse * coarse) / total
    first = (fine * (3.5 * step + origin) + coarse * (0.5 * coarse + coarse_origin)) / total
    upper = 4 * np.clip(np.ceil((at - first[:, None]) / slope[:, None]), 0, 3)
    codes = np.clip(nearest_codes(at, step, origin, 4), upper, upper + 3)
    return Top(codes, scale, bias, squares(at, codes, step, origin) * unit**2)


def choose_codes(weights: np.ndarray, levels: tuple[int, ...], dtype: str) -> Top:
    """New codes for weights; the groups that lose most are taken back, so that the whole is no worse than mx.quantize."""
    as_mlx = on_mlx_grid(weights, levels[-1], dtype)
    if levels != (2, 4):
        return as_mlx
    ours = Top(*(np.array(part) for part in shaped(weights, dtype)))
    lost = (ours.errors - as_mlx.errors).astype(np.float64)
    if lost.sum() > 0:
        order = np.argsort(-lost)
        back = order[: np.searchsorted(np.cumsum(lost[order]), lost.sum()) + 1]
        for mine, theirs in zip(ours, as_mlx, strict=True):
            mine[back] = theirs[back]
    return ours


def keep_codes(stream: np.ndarray, bits: int, top: int, size: int, scales: np.ndarray, biases: np.ndarray | None) -> Top:
    """The codes of an affine source, widened to `top` bits. Without biases the code of a zero weight is known."""
    codes = (unpack(stream, bits) << np.uint8(top - bits)).reshape(-1, size)
    biases = scales * np.float32(-zero_code(bits)) if biases is None else biases
    return Top(codes.astype(np.float32), scales / np.float32(1 << (top - bits)), biases, np.zeros(len(scales)))


def levels_of(
    whole: Top, weights: np.ndarray, levels: tuple[int, ...], dtype: str, symmetric: bool
) -> tuple[list[tuple[np.ndarray, np.ndarray, np.ndarray]], list[float], float]:
    """The parts of a record, (scales, biases, codes) as uint8 [bytes] for each level; the levels' squared errors against
    float64 weights [groups, size]; and the weights' squares."""
    top, scale, bias = levels[-1], whole.scales.astype(np.float64), whole.biases.astype(np.float64)
    at = np.divide(weights - bias[:, None], scale[:, None], out=np.zeros_like(weights), where=scale[:, None] != 0)
    found, errors = [], []
    for bits in levels:
        scales, biases, upper = whole.scales, whole.biases, np.floor(whole.codes / 2 ** (top - bits))
        if bits < top:
            line = fit(at, upper, (zero_code(bits), zero_code(top)) if symmetric else None)
            scales = to_dtype(scale * line.slope, dtype)
            biases = scales * np.float32(-zero_code(bits)) if symmetric else to_dtype(bias + scale * line.offset, dtype)
        wide = upper.astype(np.float64) * scales[:, None].astype(np.float64) + biases[:, None].astype(np.float64)
        errors.append(float(((wide - weights) ** 2).sum()))
        found.append((to_bytes(scales, dtype), to_bytes(biases, dtype)))
    stream, codes = pack(whole.codes.astype(np.uint8).reshape(-1), top), []
    for bits in reversed(levels[1:]):
        stream, lower = halve(stream, bits)
        codes.insert(0, lower)
    parts = [(*affine, plane) for affine, plane in zip(found, [stream, *codes], strict=True)]
    return parts, errors, float((weights**2).sum())
