"""Grids: what scale and bias a group of weights gets at each level of a packed record.

The codes of the highest level are fixed first; a lower level has their upper bits, and a scale and a bias of its own, fitted
to the weights by least squares. Where the source is quantized in MLX's affine way already, the codes are the source's. Else
they are chosen here: MLX's own grid, or one over a smaller part of the group's range, whichever is better for the lowest
level and no worse than MLX's for the highest.

All in numpy: worker threads run it, which must not touch MLX. Groups are rows: arrays are [groups, group_size].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SHRINK = (0.85, 0.9, 0.95)  # parts of a group's range that a grid is tried over
SMALLEST = 1e-7  # scale, as in mx.quantize


class Fit(NamedTuple):
    """A lower level's grid in units of the highest level's codes, code = slope * upper + offset, and the squared error."""

    slope: np.ndarray  # [groups]
    offset: np.ndarray
    error: np.ndarray


def refit(values: np.ndarray, upper: np.ndarray, zeros: tuple[float, float] | None = None) -> Fit:
    """The least-squares line through `values` (float32, in units of the highest level's codes) over the `upper` codes
    (uint8). With `zeros` it goes through that point: the upper code and the code of a zero weight."""
    v, h = values, upper.astype(np.float32)
    if zeros is not None:
        v, h = v - np.float32(zeros[1]), h - np.float32(zeros[0])
    vv, hh, vh = (np.einsum("ij,ij->i", x, y) for x, y in ((v, v), (h, h), (v, h)))
    if zeros is not None:
        slope = np.divide(vh, hh, out=np.ones_like(vh), where=hh > 0)
        return Fit(slope, zeros[1] - zeros[0] * slope, np.maximum(vv - slope * vh, 0))
    n = v.shape[1]
    mean_v, mean_h = v.mean(axis=1), h.mean(axis=1)
    spread, together = hh - n * mean_h**2, vh - n * mean_v * mean_h
    flat = spread < 0.5 / n  # one upper code in the whole group
    slope = np.divide(together, spread, out=np.ones_like(together), where=~flat)
    error = vv - n * mean_v**2 - np.where(flat, 0, slope * together)
    return Fit(slope, mean_v - slope * mean_h, np.maximum(error, 0))


def quantize(weights: np.ndarray, bits: int, lowest: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes (uint8), scales and biases (float32 [groups], such as `dtype` can hold) of float32 weights."""
    low, high = weights.min(axis=1), weights.max(axis=1)
    best = _on_grid(weights, *_mlx_grid(low, high, bits, dtype), bits, lowest)
    limit = best[3]
    for part in SHRINK:
        scale = to_dtype(np.maximum((high - low) * np.float32(part / ((1 << bits) - 1)), SMALLEST), dtype)
        bias = to_dtype((low + high) / 2 - ((1 << bits) - 1) / 2 * scale, dtype)
        other = _on_grid(weights, scale, bias, bits, lowest)
        better = (other[3] <= limit) & (other[4] < best[4])
        for ours, theirs in zip(best, other, strict=True):
            ours[better] = theirs[better]
    return best[0], best[1], best[2]


def _on_grid(
    weights: np.ndarray, scale: np.ndarray, bias: np.ndarray, bits: int, lowest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Codes on a grid, the grid, and the squared errors of the highest and, about, the lowest level."""
    at = weights - bias[:, None]
    at *= (1 / scale)[:, None]
    nearest = np.rint(at)
    np.clip(nearest, 0, (1 << bits) - 1, out=nearest)
    codes = nearest.astype(np.uint8)
    at -= nearest
    error = np.einsum("ij,ij->i", at, at) * scale**2
    at += nearest  # the weights, in units of the codes
    h = (codes >> (bits - lowest)).astype(np.float32)
    n = weights.shape[1]
    mean_w, mean_h = at.mean(axis=1), h.mean(axis=1)
    spread = np.einsum("ij,ij->i", h, h) - n * mean_h**2
    together = np.einsum("ij,ij->i", at, h) - n * mean_w * mean_h
    explained = np.divide(together**2, spread, out=np.zeros_like(spread), where=spread > 0.5 / n)
    lowest_error = (np.einsum("ij,ij->i", at, at) - n * mean_w**2 - explained) * scale**2
    return codes, scale, bias, error, lowest_error


def _mlx_grid(low: np.ndarray, high: np.ndarray, bits: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """The grid of mx.quantize: it begins at the end of the range that is further from 0, and has 0 as one of its points."""
    from_below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / ((1 << bits) - 1), np.float32(SMALLEST))
    scale = np.where(from_below, scale, -scale)
    edge = np.where(from_below, low, high)
    at_zero = np.rint(edge / scale)
    scale = np.where(at_zero == 0, scale, edge / np.where(at_zero == 0, 1, at_zero))
    return to_dtype(scale, dtype), to_dtype(np.where(at_zero == 0, 0, edge), dtype)


def to_dtype(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values rounded to what BF16, F16 or F32 can hold."""
    return from_bytes(to_bytes(values, dtype), dtype)


def to_bytes(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as they lie in a file: uint8 [bytes], rounded to nearest."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return rounded.astype(np.uint16).view(np.uint8).reshape(-1)
    return np.ascontiguousarray(values, np.float16 if dtype == "F16" else np.float32).view(np.uint8).reshape(-1)


def from_bytes(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Undo `to_bytes`."""
    if dtype == "BF16":
        return np.left_shift(stored.view(np.uint16), 16, dtype=np.uint32).view(np.float32)
    return stored.view(np.float16).astype(np.float32) if dtype == "F16" else stored.view(np.float32)
