"""Bit planes: splits codes of 2n bits into two streams of n bits; the first stream alone is a coarser code.

The layout lets a few operations on whole machine words join the streams, at the speed of memory: for two neighbouring words
A and B of the wide stream, one narrow word has the upper halves of all their codes and another one the lower halves. The
upper stream is itself a stream of n-bit codes as MLX packs them, with the columns of A and B alternating. To compute with
it, the input's columns are permuted the same way (`column_order`). The permutation stays within blocks of 32 columns, so
that quantization groups (32 columns and more) are not mixed.

    wide    A: a0 a1 a2 ...   B: b0 b1 b2 ...
    upper   a0 b0 a1 b1 a2 b2 ... (upper halves)      lower   the same of the lower halves

MLX packs codes of any width as one little-endian bit stream (mx.quantize).
"""

from __future__ import annotations

import functools
import threading

import numpy as np

BLOCK = 32  # columns; the permutation stays within such a block
CHUNK = 1 << 17  # words joined per step
_scratch = threading.local()
UNITS = {2: 4, 3: 8, 4: 2, 5: 8, 6: 4}  # width -> least power of two of codes that fill whole bytes


def _words(stream: np.ndarray, bits: int) -> np.ndarray:
    """The stream (uint8) as words with a whole number of codes: 64 bits, or 24 used bits of 32 for 6-bit codes."""
    if bits != 6:
        return stream.view("<u8")
    triples = stream.reshape(-1, 3)
    words = triples[:, 0].astype(np.uint32)
    words |= np.left_shift(triples[:, 1], 8, dtype=np.uint32)
    words |= np.left_shift(triples[:, 2], 16, dtype=np.uint32)
    return words


def _store(words: np.ndarray, out: np.ndarray) -> None:
    """Write words of 24 bits into the stream `out`; the inverse of `_words` for 6-bit codes."""
    triples = out.reshape(-1, 3)
    for byte in range(3):
        np.right_shift(words, 8 * byte, out=triples[:, byte], casting="unsafe")


def _exchange(x: np.ndarray, y: np.ndarray, bits: int, out_x: np.ndarray, out_y: np.ndarray) -> None:
    """Swap the upper halves of the codes in `x` with the lower halves of those in `y`, word by word; its own inverse.

    It uses few operations on long runs, because a thread may wait for the interpreter lock between any two.
    """
    word = x.dtype.type
    half = word(bits // 2)
    lower = word(sum(((1 << int(half)) - 1) << at for at in range(0, 24 if bits == 6 else 64, bits)))
    room = getattr(_scratch, "words", None)
    if room is None:
        room = _scratch.words = np.empty(CHUNK, np.uint64)
    for at in range(0, len(x), CHUNK):
        run = slice(at, at + CHUNK)
        apart = room.view(word)[: len(x[run])]
        np.right_shift(x[run], half, out=apart)
        np.bitwise_xor(apart, y[run], out=apart)
        np.bitwise_and(apart, lower, out=apart)
        np.bitwise_xor(y[run], apart, out=out_y[run])
        np.left_shift(apart, half, out=apart)
        np.bitwise_xor(x[run], apart, out=out_x[run])


def halve(stream: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Split a stream of `bits`-bit codes (4, 6 or 8) into the upper and the lower stream, all uint8 [bytes]. The length must
    be a multiple of 32 codes."""
    words = _words(stream, bits)
    high, low = np.empty((2, len(words) // 2), words.dtype)
    _exchange(words[0::2], words[1::2], bits, low, high)
    if bits != 6:
        return high.view(np.uint8), low.view(np.uint8)
    out = np.empty((2, len(high) * 3), np.uint8)
    _store(high, out[0])
    _store(low, out[1])
    return out[0], out[1]


def join(high: np.ndarray, low: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Join two streams into `out` (uint8, as long as both together); the inverse of `halve`."""
    highs, lows = _words(high, bits), _words(low, bits)
    words = np.empty(2 * len(highs), highs.dtype) if bits == 6 else out.view("<u8")
    _exchange(lows, highs, bits, words[0::2], words[1::2])
    if bits == 6:
        _store(words, out)


def column_order(bits: int, times: int) -> np.ndarray:
    """The column of each of a block's 32 codes, in the upper stream after `times` splits of `bits`-bit codes."""
    order = np.arange(BLOCK)
    for _ in range(times):
        codes = 4 if bits == 6 else 64 // bits  # in a word
        order = order.reshape(-1, 2, codes).swapaxes(1, 2).reshape(-1)
        bits //= 2
    return order


def unpack(stream: np.ndarray, bits: int) -> np.ndarray:
    """The `bits`-bit codes of a stream (uint8 [bytes]), one per byte: uint8 [codes]."""
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
    """The stream of `bits`-bit codes, which must be below 2^bits; the inverse of `unpack`."""
    if bits == 8:
        return codes
    words = codes.view(f"<u{UNITS[bits]}")
    for low, high, gap in _moves(bits):
        words = (words & low) | ((words >> gap) & high)
    return np.ascontiguousarray(words.view(np.uint8).reshape(len(words), -1)[:, : UNITS[bits] * bits // 8]).reshape(-1)


@functools.cache
def _moves(bits: int) -> list[tuple[np.unsignedinteger, np.unsignedinteger, np.unsignedinteger]]:
    """Steps that close the gaps in a word with one code per byte. Each step joins neighbouring runs, twice as long as in the
    step before: (mask of the lower run, mask of the upper run after its move, number of bits it moves down)."""
    codes, moves, run = UNITS[bits], [], 1
    word = np.dtype(f"<u{codes}").type
    while run < codes:
        low = sum(((1 << (run * bits)) - 1) << at for at in range(0, 8 * codes, 16 * run))
        moves.append((word(low), word(low << (run * bits)), word(run * (8 - bits))))
        run *= 2
    return moves
