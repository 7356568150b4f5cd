"""Quantization: chooses the codes and the grid (scale, bias) of each group of weights at the highest level of a record.

The codes of the highest level are fixed first; a lower level has their upper bits and its own scale and bias (`fit`). A
source in MLX's affine format keeps its codes. For other sources the codes are chosen here. With levels of 2 and 4 bits
(`SHAPED`) they are chosen so that both levels are good:

1. For a few grids over smaller and shifted parts of a group's range, a histogram of the group estimates the error e4 of the
   highest level and the error e2 of the lowest one. The grid with the smallest e2 + PRICE e4 is taken.
2. Both grids are refitted to the codes, and the codes to both grids, for the same sum: a weight near the border of two upper
   codes goes to the side that is better for both levels together, which is not always the side of the nearest code.
3. The error of the highest level over all groups must not exceed that of mx.quantize. If it does, the groups that lose the
   most take the grid and codes of mx.quantize.

`python -m engine bench grids` measures the gain. Groups are rows: arrays are [groups, group_size].
"""

from __future__ import annotations

import functools
import math
import threading
from typing import Any, NamedTuple

import numpy as np

from engine.checkpoint.dtypes import to_dtype

from .fit import fit, sums

SMALLEST = np.float32(1e-7)  # scale, as in mx.quantize
SHAPED = (2, 4)  # lowest and highest level for which the grid is shaped; at 6 and 8 bits there is nothing to gain
PRICE = 2.75  # weight of a squared error at the highest level, relative to the lowest
BINS = 64  # of a group's histogram
BATCH = 32  # groups per product: small enough that the BLAS stays in the calling thread
PARTS = (0.95, 0.9, 0.85)  # widths of the grids tried, as shares of the group's range
SHIFTS = (-0.8, -0.4, 0.0, 0.4, 0.8)  # shifts of the grids tried, in their steps


class Memory(threading.local):
    """Scratch arrays of a thread, reused for every run of groups; new allocations would cost as much as the arithmetic."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
        """An uninitialized array of that shape; it overwrites the previous array of the same name."""
        count = math.prod(shape)
        if name not in self._held or self._held[name].size < count:
            self._held[name] = np.empty(count, dtype)
        return self._held[name][:count].reshape(shape)


memory = Memory()


class Quantized(NamedTuple):
    """Groups of weights at the highest level."""

    codes: np.ndarray  # integers as float32 [groups, group_size]; overwritten by this thread's next call
    scales: np.ndarray  # float32 [groups], rounded to the stored type
    biases: np.ndarray
    errors: np.ndarray  # squared, float32 [groups]


def quantize(weights: np.ndarray, bits: int, lowest: int, dtype: str) -> Quantized:
    """Codes and grids for float32 weights [groups, group_size] at `bits`, good at `lowest` bits too. `dtype`: the stored
    type of scales and biases. Raises `FloatingPointError` for weights that are not finite."""
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
    """Codes and grids as mx.quantize computes them. Raises `FloatingPointError` for weights that are not finite."""
    low, high = _extremes(weights)
    if not np.isfinite(high - low).all():
        raise FloatingPointError("weights are not finite")
    scale, bias = _mlx_grid(low, high, bits, dtype)
    codes = _codes(weights, scale, bias, bits, memory("as_mlx", weights.shape))
    return Quantized(codes, scale, bias, _errors(weights, codes, scale, bias))


def _shaped(weights: np.ndarray, bits: int, lowest: int, dtype: str) -> Quantized:
    """Steps 1 and 2 of the module's docstring."""
    low, high = _extremes(weights)
    unit = np.maximum((high - low) / np.float32((1 << bits) - 1), SMALLEST)
    at = np.subtract(weights, low[:, None], out=memory("at", weights.shape))
    at *= (1 / unit)[:, None]  # scaled to 0 .. highest code
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
    """Codes (integers as float32) without their lowest `below` bits; the next call overwrites the result."""
    upper = np.multiply(codes, np.float32(0.5**below), out=memory("upper", codes.shape))
    return np.floor(upper, out=upper)


def _first_grid(at: np.ndarray, bits: int, lowest: int) -> tuple[np.ndarray, np.ndarray]:
    """Step and origin of the best grid among `PARTS` and `SHIFTS` for each group, in units of `at`."""
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
    """Steps and origins of the grids, and a table float32 [BINS, 4 grids + 1]: the contribution of one weight in each bin to
    the sums h, hh and vh and to the highest level's error on each grid, and to the sum v. Weights count as spread evenly
    over their bin."""
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
    """The nearest codes on a grid, as float32."""
    codes = np.subtract(at, origin[:, None], out=out)
    codes *= (1 / step)[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, (1 << bits) - 1, out=codes)


def _keep_sides(
    codes: np.ndarray, at: np.ndarray, step: np.ndarray, origin: np.ndarray, coarse: np.ndarray, coarse_origin: np.ndarray,
    bits: int, lowest: int,
) -> None:  # fmt: skip
    """Move `codes` to the side of each border between upper codes where e2 + PRICE e4 is smaller. The borders of both grids
    are linear in the upper code; so is the joint border, their mean weighted by steps and price."""
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
    """The smallest and the largest weight of each group. `reduceat` is four times as fast as `min` over short rows."""
    flat, begins = weights.reshape(-1), np.arange(0, weights.size, weights.shape[1])
    return np.minimum.reduceat(flat, begins), np.maximum.reduceat(flat, begins)


def _mlx_grid(low: np.ndarray, high: np.ndarray, bits: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The grid of mx.quantize: it starts at the end of the range that is further from 0, and 0 is one of its points."""
    from_below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32((1 << bits) - 1), SMALLEST)
    scale = np.where(from_below, scale, -scale)
    edge = np.where(from_below, low, high)
    at_zero = np.rint(edge / scale)
    scale = np.where(at_zero == 0, scale, edge / np.where(at_zero == 0, 1, at_zero))
    return to_dtype(scale, dtype), to_dtype(np.where(at_zero == 0, 0, edge), dtype)
