"""Nesting: codes of 2n bits, stored as two streams of n bits of which the first alone is a coarser code.

Both streams are laid out so that putting them together is a handful of operations on whole machine words, at the speed of
memory: of two neighbouring words A and B of the wide stream, one narrow word takes the upper halves of all their codes and
another one the lower halves. The upper stream is itself a stream of n-bit codes as MLX packs them, but with the columns of
A and B in turns. Who computes with it brings the input's columns into that order (`column_order`); within blocks of 32
columns, so that the groups of a quantization (32 and more) stay together.

    wide    A: a0 a1 a2 ...   B: b0 b1 b2 ...
    upper   a0 b0 a1 b1 a2 b2 ... (upper halves)      lower   the same of the lower halves

MLX packs codes of any width as one little-endian stream of bits (mx.quantize).
"""

from __future__ import annotations

import functools

import numpy as np

BLOCK = 32  # columns within which the order changes
CHUNK = 1 << 15  # words put together at a time: what that takes stays in the cache
UNITS = {2: 4, 3: 8, 4: 2, 5: 8, 6: 4}  # by width: the fewest codes, a power of two, that fill whole bytes


def _words(stream: np.ndarray, bits: int) -> np.ndarray:
    """The stream (uint8) as words that hold a whole number of codes: 64 bits, or for 6-bit codes 24 of 32."""
    if bits != 6:
        return stream.view("<u8")
    triples = stream.reshape(-1, 3)
    words = triples[:, 0].astype(np.uint32)
    words |= np.left_shift(triples[:, 1], 8, dtype=np.uint32)
    words |= np.left_shift(triples[:, 2], 16, dtype=np.uint32)
    return words


def _store(words: np.ndarray, out: np.ndarray) -> None:
    """Undo `_words` for 6-bit codes: words of 24 bits into the stream `out`."""
    triples = out.reshape(-1, 3)
    for byte in range(3):
        np.right_shift(words, 8 * byte, out=triples[:, byte], casting="unsafe")


def _masks(bits: int) -> tuple[np.unsignedinteger, np.unsignedinteger, np.unsignedinteger]:
    """The lower and upper halves of all codes of a word, and half a code's width."""
    word = np.uint32 if bits == 6 else np.uint64
    size, half = (24 if bits == 6 else 64), bits // 2
    lower = sum(((1 << half) - 1) << at for at in range(0, size, bits))
    return word(lower), word(lower << half), word(half)


def halve(stream: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The upper and the lower stream of a stream of `bits`-bit codes (4, 6 or 8), all uint8 [bytes]; the length must be a
    multiple of 32 codes."""
    words = _words(stream, bits)
    a, b = words[0::2], words[1::2]
    lower, upper, half = _masks(bits)
    high, low = ((a & upper) >> half) | (b & upper), (a & lower) | ((b & lower) << half)
    if bits != 6:
        return high.view(np.uint8), low.view(np.uint8)
    out = np.empty((2, len(high) * 3), np.uint8)
    _store(high, out[0])
    _store(low, out[1])
    return out[0], out[1]


def join(high: np.ndarray, low: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Undo `halve` into `out` (uint8 [bytes], as long as both together)."""
    lower, upper, half = _masks(bits)
    if bits == 6:
        h, w = _words(high, bits), _words(low, bits)
        words = np.empty(2 * len(h), np.uint32)
        words[0::2] = ((h & lower) << half) | (w & lower)
        words[1::2] = (h & upper) | ((w & upper) >> half)
        _store(words, out)
        return
    highs, lows, wide = high.view("<u8"), low.view("<u8"), out.view("<u8")
    a, b = wide[0::2], wide[1::2]
    first, second = np.empty(CHUNK, np.uint64), np.empty(CHUNK, np.uint64)
    for at in range(0, len(highs), CHUNK):
        h, w = highs[at : at + CHUNK], lows[at : at + CHUNK]
        x, y = first[: len(h)], second[: len(h)]
        np.bitwise_and(h, lower, out=x)
        np.left_shift(x, half, out=x)
        np.bitwise_and(w, lower, out=y)
        np.bitwise_or(x, y, out=a[at : at + CHUNK])
        np.bitwise_and(w, upper, out=x)
        np.right_shift(x, half, out=x)
        np.bitwise_and(h, upper, out=y)
        np.bitwise_or(x, y, out=b[at : at + CHUNK])


def column_order(bits: int, times: int) -> np.ndarray:
    """Which column each of a block's 32 codes is of, in the upper stream of `bits`-bit codes halved `times` times."""
    order = np.arange(BLOCK)
    for _ in range(times):
        codes = 4 if bits == 6 else 64 // bits  # in a word
        order = order.reshape(-1, 2, codes).swapaxes(1, 2).reshape(-1)
        bits //= 2
    return order


def unpack(stream: np.ndarray, bits: int) -> np.ndarray:
    """The codes of a stream (uint8 [bytes]) of `bits`-bit codes, uint8 [codes]."""
    if bits == 8:
        return stream
    codes = UNITS[bits]
    units = np.zeros((stream.size * 8 // (bits * codes), codes), np.uint8)
    units[:, : codes * bits // 8] = stream.reshape(len(units), -1)
    words = units.view(f"<u{codes}").reshape(-1)
    for low, high, gap in reversed(_moves(bits)):
        words = (words & low) | ((words & high) << gap)
    return words.view(np.uint8)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Undo `unpack`; all codes must be below 2^bits."""
    if bits == 8:
        return codes
    words = codes.view(f"<u{UNITS[bits]}")
    for low, high, gap in _moves(bits):
        words = (words & low) | ((words >> gap) & high)
    return np.ascontiguousarray(words.view(np.uint8).reshape(len(words), -1)[:, : UNITS[bits] * bits // 8]).reshape(-1)


@functools.cache
def _moves(bits: int) -> list[tuple[np.unsignedinteger, np.unsignedinteger, np.unsignedinteger]]:
    """How a unit of codes with a byte each in a word comes together: of neighbouring runs of codes, each time twice as long,
    the upper one (a mask of where it goes) moves down to the lower one (a mask of where it is) by a number of bits."""
    codes, moves, run = UNITS[bits], [], 1
    word = np.dtype(f"<u{codes}").type
    while run < codes:
        low = sum(((1 << (run * bits)) - 1) << at for at in range(0, 8 * codes, 16 * run))
        moves.append((word(low), word(low << (run * bits)), word(run * (8 - bits))))
        run *= 2
    return moves
