"""Grids: what scale and bias a group of weights gets at each level of a packed record.

The codes of the highest level are fixed first; a lower level has their upper bits, and a scale and a bias of its own, fitted
to the weights by least squares. Where the source is quantized in MLX's affine way already, the codes are the source's. Else
they are chosen here, and where four bits begin with two (`SHAPED`) so that both levels are good:

1. A histogram of each group tells, for a few grids over smaller and shifted parts of its range, about what error e4 the
   highest level would have on them and what error e2 the lowest one. The grid with the smallest e2 + PRICE e4 is taken.
2. Both grids are refitted to the codes, and the codes to both grids, for the same sum: a weight near the border of two upper
   codes goes to the side that is better for both levels together, which is not always that of the nearest code.
3. What the highest level loses over mx.quantize in some groups it must win in others: otherwise those that lose the most
   fall back to mx.quantize's own grid and codes, until its error over all groups is no larger.

`python -m engine bench grids` shows what that brings. All in numpy: worker threads run it, which must not touch MLX. Groups
are rows: arrays are [groups, group_size].
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any, NamedTuple

import numpy as np

SMALLEST = np.float32(1e-7)  # scale, as in mx.quantize
SHAPED = (2, 4)  # lowest and highest level for which the grid is shaped; 6 and 8 bits have no error to give away
PRICE = 2.75  # of a squared error at the highest level, in such errors at the lowest
BINS = 64  # of a group's histogram
BATCH = 32  # groups multiplied at a time: so few that the BLAS does it in the thread that asks
PARTS = (0.95, 0.9, 0.85)  # of a group's range, which a grid is tried over
SHIFTS = (-0.8, -0.4, 0.0, 0.4, 0.8)  # of such a grid, in its steps
RUN = 64  # codes that are summed up in one number


class Memory(threading.local):
    """Arrays of a thread that are used again for every run of groups; to take them anew costs as much as the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An array of that shape, with anything in it; the last one of that name is gone."""
        count = math.prod(shape)
        if name not in self._held or self._held[name].size < count:
            self._held[name] = np.empty(count, dtype)
        return self._held[name][:count].reshape(shape)


memory = Memory()


class Sums(NamedTuple):
    """What least squares need of each group's values v and upper codes h: sums over the group, [groups]."""

    v: np.ndarray
    h: np.ndarray
    vv: np.ndarray
    hh: np.ndarray
    vh: np.ndarray


class Fit(NamedTuple):
    """A line through values over codes, value = slope * code + offset, and its squared error. [groups]"""

    slope: np.ndarray
    offset: np.ndarray
    error: np.ndarray


def sums(values: np.ndarray, upper: np.ndarray, known: Sums | None = None) -> Sums:
    """The sums of float32 values and codes [groups, group_size]; those of the values alone are taken from `known`."""
    ones = np.ones(values.shape[1], np.float32)
    v, vv = (known.v, known.vv) if known else (np.vecdot(values, ones), np.vecdot(values, values))
    return Sums(v, np.vecdot(upper, ones), vv, np.vecdot(upper, upper), np.vecdot(values, upper))


def sums_of_codes(stream: np.ndarray, width: int, top: int, bits: int, size: int) -> Sums:
    """The same, as float64, where the values are codes of `top` bits themselves and h their upper `bits`: looked up for 16
    bits of the stream at a time, which holds a code each `width` (4 or 8) bits (uint8 [bytes])."""
    table, fields = _code_sums(width, top, bits)
    most = min(size, RUN)
    packed = table.take(stream.view("<u2")).reshape(-1, most * width // 16).sum(axis=1)
    found = []
    for field in fields:
        part = packed & np.uint64((1 << field) - 1)
        packed >>= np.uint64(field)
        found.append(part.reshape(-1, size // most).sum(axis=1).astype(np.float64))
    h, rest, hh, hr, rr = found
    unit = 1 << (top - bits)
    return Sums(unit * h + rest, h, unit**2 * hh + 2 * unit * hr + rr, hh, unit * hh + hr)


@functools.cache
def _code_sums(width: int, top: int, bits: int) -> tuple[np.ndarray, list[int]]:
    """For each 16 bits, the sums over their codes of h, r, hh, hr and rr, h the upper `bits` of a code and r what is below,
    side by side in one number; and the bits each takes, so that the sums over RUN codes do not touch."""
    words, below = np.arange(1 << 16), top - bits
    codes = [(words >> at) & ((1 << width) - 1) for at in range(0, 16, width)]
    h, r = (np.stack(x) for x in zip(*((c >> below, c & ((1 << below) - 1)) for c in codes), strict=True))
    high, low = (1 << bits) - 1, (1 << below) - 1
    table, fields, at = np.zeros(1 << 16, np.uint64), [], 0
    for terms, most in ((h, high), (r, low), (h * h, high**2), (h * r, high * low), (r * r, low**2)):
        table |= terms.sum(axis=0).astype(np.uint64) << np.uint64(at)
        fields.append((RUN * most).bit_length())
        at += fields[-1]
    return table, fields


def fit(found: Sums, size: int, zeros: tuple[float, float] | None = None) -> Fit:
    """The least-squares line for groups of `size`. With `zeros` it goes through that point: the code and the value of a
    zero weight."""
    v, h, vv, hh, vh = found
    if zeros is not None:
        zero, value = zeros
        spread = hh - 2 * zero * h + size * zero**2
        together = vh - zero * v - value * h + size * zero * value
        slope = np.divide(together, spread, out=np.ones_like(spread), where=spread > 0)
        error = vv - 2 * value * v + size * value**2 - slope * together
        return Fit(slope, value - zero * slope, np.maximum(error, 0))
    spread, together = hh - h * h / size, vh - v * h / size
    flat = spread < 0.5 / size  # one upper code in the whole group
    slope = np.divide(together, spread, out=np.ones_like(spread), where=~flat)
    error = vv - v * v / size - np.where(flat, 0, slope * together)
    return Fit(slope, (v - slope * h) / size, np.maximum(error, 0))


def error(found: Sums, size: int, slope: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The squared error of any other line. [groups]"""
    v, h, vv, hh, vh = found
    squares = vv - 2 * slope * vh - 2 * offset * v + slope**2 * hh + 2 * slope * offset * h + size * offset**2
    return np.maximum(squares, 0)


class Quantized(NamedTuple):
    """Groups of weights at the highest level."""

    codes: np.ndarray  # whole numbers as float32 [groups, group_size]; this thread's next call overwrites them
    scales: np.ndarray  # float32 [groups], such as the stored type can hold
    biases: np.ndarray
    errors: np.ndarray  # squared, float32 [groups]


def quantize(weights: np.ndarray, bits: int, lowest: int, dtype: str) -> Quantized:
    """Codes and grids for float32 weights. Raises `FloatingPointError` if they are not finite."""
    as_mlx = on_mlx_grid(weights, bits, dtype)
    if (lowest, bits) != SHAPED:
        return as_mlx
    shaped = _shaped(weights, bits, lowest, dtype)
    lost = (shaped.errors - as_mlx.errors).astype(np.float64)
    if lost.sum() > 0:
        order = np.argsort(-lost)
        back = order[: np.searchsorted(np.cumsum(lost[order]), lost.sum()) + 1]
        for ours, mlx in zip(shaped, as_mlx, strict=True):
            ours[back] = mlx[back]
    return shaped


def on_mlx_grid(weights: np.ndarray, bits: int, dtype: str) -> Quantized:
    """The same as mx.quantize has them. Raises `FloatingPointError` if weights are not finite."""
    low, high = _extremes(weights)
    if not np.isfinite(high - low).all():
        raise FloatingPointError("weights are not finite")
    scale, bias = _mlx_grid(low, high, bits, dtype)
    codes = _codes(weights, scale, bias, bits, memory("as_mlx", weights.shape))
    return Quantized(codes, scale, bias, _errors(weights, codes, scale, bias))


def _shaped(weights: np.ndarray, bits: int, lowest: int, dtype: str) -> Quantized:
    """Steps 1 and 2 of the above."""
    low, high = _extremes(weights)
    unit = np.maximum((high - low) / np.float32((1 << bits) - 1), SMALLEST)
    at = np.subtract(weights, low[:, None], out=memory("at", weights.shape))
    at *= (1 / unit)[:, None]  # 0 to the highest code, whatever the weights are
    step, origin = _first_grid(at, bits, lowest)
    codes, size = _codes(at, step, origin, bits, memory("codes", at.shape)), at.shape[1]
    known = sums(at, codes)
    step, origin, _ = fit(known, size)
    coarse, coarse_origin, _ = fit(sums(at, upper_bits(codes, bits - lowest), known), size)
    scale = to_dtype(np.maximum(step * unit, SMALLEST), dtype)
    bias = to_dtype(low + origin * unit, dtype)
    step, origin = scale / unit, (bias - low) / unit
    codes = _codes(at, step, origin, bits, codes)
    _keep_sides(codes, at, step, origin, coarse, coarse_origin, bits, lowest)
    return Quantized(codes, scale, bias, _errors(at, codes, step, origin) * unit**2)


def upper_bits(codes: np.ndarray, below: int) -> np.ndarray:
    """Codes (whole numbers as float32) without their lowest bits, `below` of them; until the next call."""
    upper = np.multiply(codes, np.float32(0.5**below), out=memory("upper", codes.shape))
    return np.floor(upper, out=upper)


def _first_grid(at: np.ndarray, bits: int, lowest: int) -> tuple[np.ndarray, np.ndarray]:
    """Step and origin of the best grid of `PARTS` and `SHIFTS` for each group, in units of `at`."""
    groups, size = at.shape
    steps, origins, table = _table(bits, lowest)
    bins = memory("bins", at.shape, np.int64)
    np.multiply(at, np.float32((BINS - 1e-3) / ((1 << bits) - 1)), out=bins, casting="unsafe")
    bins += np.arange(0, groups * BINS, BINS)[:, None]
    batches = -(-groups // BATCH)
    counts = np.bincount(bins.reshape(-1), minlength=batches * BATCH * BINS).astype(np.float32)
    added = np.matmul(counts.reshape(batches, BATCH, BINS), table).reshape(batches * BATCH, -1)[:groups]
    h, hh, vh, error, plain = np.split(added, np.arange(1, 5) * len(steps), axis=1)
    together = vh - plain[:, :1] * h / size
    error *= PRICE
    error -= together * together / np.maximum(hh - h * h / size, np.float32(0.5 / size))
    best = error.argmin(axis=1)
    return steps[best], origins[best]


@functools.cache
def _table(bits: int, lowest: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps and origins of the grids, and float32 [BINS, 4 grids + 1]: what one weight of each bin, as if spread evenly in
    it, adds to the sums h, hh and vh and to the error of the highest level on each grid, and to the sum v."""
    top = (1 << bits) - 1
    steps, shifts = (g.reshape(-1, 1, 1) for g in np.meshgrid(PARTS, SHIFTS, indexing="ij"))
    origins = (top - top * steps) / 2 + shifts * steps
    inside = 16
    v = ((np.arange(BINS * inside) + 0.5) * top / (BINS * inside)).reshape(BINS, inside)
    codes = np.clip(np.rint((v - origins) / steps), 0, top)
    h = codes // (1 << (bits - lowest))
    error = (v - origins - codes * steps) ** 2
    table = np.concatenate([h, h * h, v * h, error, v[None]]).mean(axis=-1).T
    return steps.reshape(-1).astype(np.float32), origins.reshape(-1).astype(np.float32), table.astype(np.float32)


def _codes(at: np.ndarray, step: np.ndarray, origin: np.ndarray, bits: int, out: np.ndarray) -> np.ndarray:
    """The nearest codes of a grid, as float32."""
    codes = np.subtract(at, origin[:, None], out=out)
    codes *= (1 / step)[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, (1 << bits) - 1, out=codes)


def _keep_sides(
    codes: np.ndarray, at: np.ndarray, step: np.ndarray, origin: np.ndarray, coarse: np.ndarray, coarse_origin: np.ndarray,
    bits: int, lowest: int,
) -> None:  # fmt: skip
    """Move `codes` to the side of each border between upper codes on which e2 + PRICE e4 is smaller. The borders of both
    grids are lines over the upper code, and so is the one between them that counts, weighted by steps and price."""
    below = 1 << (bits - lowest)
    fine, total = PRICE * step, PRICE * step + coarse
    slope = (fine * below * step + coarse * coarse) / total
    first = (fine * ((below - 0.5) * step + origin) + coarse * (0.5 * coarse + coarse_origin)) / total
    upper = np.subtract(at, first[:, None], out=memory("upper", at.shape))
    upper *= (1 / slope)[:, None]
    np.ceil(upper, out=upper)
    np.clip(upper, 0, (1 << lowest) - 1, out=upper)
    upper *= below
    np.maximum(codes, upper, out=codes)
    upper += below - 1
    np.minimum(codes, upper, out=codes)


def _errors(at: np.ndarray, codes: np.ndarray, step: np.ndarray, origin: np.ndarray) -> np.ndarray:
    off = np.multiply(codes, step[:, None], out=memory("upper", codes.shape))
    off += origin[:, None]
    off -= at
    return np.vecdot(off, off)


def _extremes(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and the largest weight of each group. numpy's own `min` takes four times as long over short rows."""
    flat, begins = weights.reshape(-1), np.arange(0, weights.size, weights.shape[1])
    return np.minimum.reduceat(flat, begins), np.maximum.reduceat(flat, begins)


def _mlx_grid(low: np.ndarray, high: np.ndarray, bits: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The grid of mx.quantize: it begins at the end of the range that is further from 0, and has 0 as one of its points."""
    from_below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32((1 << bits) - 1), SMALLEST)
    scale = np.where(from_below, scale, -scale)
    edge = np.where(from_below, low, high)
    at_zero = np.rint(edge / scale)
    scale = np.where(at_zero == 0, scale, edge / np.where(at_zero == 0, 1, at_zero))
    return to_dtype(scale, dtype), to_dtype(np.where(at_zero == 0, 0, edge), dtype)


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values rounded to nearest among those that BF16, F16 or F32 can hold; a copy."""
    if dtype == "F16":
        return values.astype(np.float16).astype(np.float32)
    found = np.array(values, np.float32)
    if dtype == "BF16":
        bits = found.view(np.uint32)
        up = bits >> 16
        up &= 1
        up += 0x7FFF
        bits += up
        bits &= 0xFFFF0000
    return found


def to_bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as they lie in a file: uint8 [bytes], rounded to nearest."""
    if dtype == "BF16":
        upper = to_dtype(values, dtype).view(np.uint32) >> 16
        return upper.astype(np.uint16).view(np.uint8).reshape(-1)
    return np.ascontiguousarray(values, np.float16 if dtype == "F16" else np.float32).view(np.uint8).reshape(-1)


def from_bytes(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Undo `to_bytes`."""
    if dtype == "BF16":
        return np.left_shift(stored.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    return stored.view(np.float16).astype(np.float32) if dtype == "F16" else stored.view(np.float32)
