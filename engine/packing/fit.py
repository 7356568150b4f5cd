"""Least squares: the scale and bias of a group at a level, fitted to the weights for given codes.

A level below the highest has the upper bits of the codes. Its scale and bias are the line through the group's weights over
these upper codes with the smallest squared error. Sums over the group determine that line, so the weights are read once.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

RUN = 64  # codes summed into one number


class Sums(NamedTuple):
    """The sums that least squares needs for each group's values v and upper codes h; arrays [groups]."""

    v: np.ndarray
    h: np.ndarray
    vv: np.ndarray
    hh: np.ndarray
    vh: np.ndarray


class Fit(NamedTuple):
    """The line value = slope * code + offset of each group and its squared error; arrays [groups]."""

    slope: np.ndarray
    offset: np.ndarray
    error: np.ndarray


def sums(values: np.ndarray, upper: np.ndarray, known: Sums | None = None) -> Sums:
    """The sums for float32 values and upper codes [groups, group_size]. `known` provides the sums of the values alone."""
    ones = np.ones(values.shape[1], np.float32)
    v, vv = (known.v, known.vv) if known else (np.vecdot(values, ones), np.vecdot(values, values))
    return Sums(v, np.vecdot(upper, ones), vv, np.vecdot(upper, upper), np.vecdot(values, upper))


def sums_of_codes(stream: np.ndarray, width: int, top: int, bits: int, size: int) -> Sums:
    """The sums, as float64, for values that are codes of `top` bits themselves; h is their upper `bits`. `stream` (uint8
    [bytes]) has one code per `width` bits (4 or 8); a table gives the sums for 16 bits at once."""
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
    """A table of the sums of h, r, hh, hr and rr over the codes in each 16 bits, where h is the upper `bits` of a code and r
    the rest. The five sums share one number; the second result is the width of each field, enough for RUN codes."""
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
    """The least-squares line for groups of `size`. With `zeros`, the code and the value of a zero weight, the line goes
    through that point."""
    v, h, vv, hh, vh = found
    if zeros is not None:
        zero, value = zeros
        spread = hh - 2 * zero * h + size * zero**2
        together = vh - zero * v - value * h + size * zero * value
        slope = np.divide(together, spread, out=np.ones_like(spread), where=spread > 0)
        error = vv - 2 * value * v + size * value**2 - slope * together
        return Fit(slope, value - zero * slope, np.maximum(error, 0))
    spread, together = hh - h * h / size, vh - v * h / size
    flat = spread < 0.5 / size  # the whole group has one upper code
    slope = np.divide(together, spread, out=np.ones_like(spread), where=~flat)
    error = vv - v * v / size - np.where(flat, 0, slope * together)
    return Fit(slope, (v - slope * h) / size, np.maximum(error, 0))


def error(found: Sums, size: int, slope: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """The squared error of a given line; [groups]."""
    v, h, vv, hh, vh = found
    squares = vv - 2 * slope * vh - 2 * offset * v + slope**2 * hh + 2 * slope * offset * h + size * offset**2
    return np.maximum(squares, 0)
