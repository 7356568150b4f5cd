"""Record: packs one expert into a record, level by level.

The arithmetic runs over groups of rows that fit into a core's cache. It is all numpy, because worker threads run it and must
not touch MLX.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from engine.checkpoint.dtypes import to_bytes, to_dtype
from engine.checkpoint.experts import ExpertTensor
from engine.checkpoint.store.bitplanes import halve, pack, unpack
from engine.checkpoint.store.description import Layer, Projection
from engine.checkpoint.store.records import zero_code
from engine.errors import CheckpointError

from .fit import Sums, fit, sums_of_codes
from .fit import error as line_error
from .fit import sums as group_sums
from .quantize import memory, quantize, upper_bits
from .sources import Codes, SourceLayer

AT_ONCE = 1 << 19  # weights per step: with fewer, threads wait for each other; with more, they wait for memory


def make_record(
    layer: SourceLayer, target: Layer, read: Callable[[ExpertTensor], np.ndarray]
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """The record of one expert. `read` returns one of its source tensors (uint8 [bytes]).

    Returns the record (uint8 [record_bytes]), the checksums of its sections and of its errors, and the errors: squared error
    relative to the weights' squares, float64 [projections, levels]. Raises `CheckpointError` for weights that are not
    finite.
    """
    record = np.zeros(target.record_bytes, np.uint8)
    errors = np.zeros((len(target.projections), len(target.levels)))
    for number, projection in enumerate(target.projections):
        stored = {t.name: read(t) for t in layer.tensors(projection.name)}
        own = [s for s in target.sections if s.projection == projection.name]
        parts = {(s.tensor, s.level): record[s.offset : s.offset + s.nbytes] for s in own}
        bias = layer.bias(projection.name, stored)
        if bias is not None:
            parts["bias", 0][:] = bias
        rows = {key: part.reshape(projection.rows, -1) for key, part in parts.items()}
        step, energy = max(1, AT_ONCE // projection.columns), 0.0
        for begin in range(0, projection.rows, step):
            end = min(begin + step, projection.rows)
            numbers = layer.rows(projection.name, stored, begin, end)
            into = {key: part[begin:end] for key, part in rows.items()}
            try:
                squared_errors, squares = _fill_levels(projection, target.levels, numbers, into)
            except FloatingPointError as e:
                raise CheckpointError(f"{target.block}.{projection.name}: {e}; copy the checkpoint again") from e
            errors[number] += squared_errors
            energy += squares
        errors[number] /= energy or 1.0
    checksums = [zlib.crc32(record[s.offset : s.offset + s.nbytes].data) for s in target.sections]
    return record, [*checksums, zlib.crc32(errors.tobytes())], errors


def _fill_levels(
    projection: Projection, levels: tuple[int, ...], numbers: Codes | np.ndarray, into: dict[tuple[str, int], np.ndarray]
) -> tuple[list[float], float]:
    """Write scales, biases and codes of some rows of a projection at every level `into` the record's parts (uint8 [rows,
    bytes]). Returns the squared errors of the levels and the sum of the weights' squares."""
    top, size, dtype = levels[-1], projection.group_size, projection.dtype
    if isinstance(numbers, Codes) and projection.exact:
        whole = _keep_codes(projection, levels, numbers)
    else:
        whole = _choose_codes(projection, levels, numbers if isinstance(numbers, np.ndarray) else _weights(numbers, size))
    scale, bias = whole.scales.astype(np.float64), whole.biases.astype(np.float64)
    in_codes = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    errors = []
    for level, bits in enumerate(levels):
        scales, biases, squared = whole.scales, whole.biases, whole.errors
        if bits < top:
            sums = whole.sums[level]
            line = fit(sums, size, (zero_code(bits), zero_code(top)) if projection.symmetric else None)
            scales = to_dtype(scale * line.slope, dtype)
            if projection.symmetric:
                biases = scales * np.float32(-zero_code(bits))
            else:
                biases = to_dtype(bias + scale * line.offset, dtype)
            squared = line_error(sums, size, scales * in_codes, (biases - bias) * in_codes) * scale**2
        into["scales", level][:] = to_bytes(scales, dtype).reshape(len(into["scales", level]), -1)
        if not projection.symmetric:
            into["biases", level][:] = to_bytes(biases, dtype).reshape(len(into["biases", level]), -1)
        errors.append(float(squared.sum()))
    stream = whole.stream
    for level in range(len(levels) - 1, -1, -1):
        codes = into["codes", level]
        stream, lower = halve(stream, levels[level]) if level else (stream, stream)
        codes[:] = lower.reshape(codes.shape)
    first = whole.sums[0]
    energy = float((first.vv * scale**2 + 2 * first.v * scale * bias + size * bias**2).sum())
    if not np.isfinite(energy):
        raise FloatingPointError("scales or biases are not finite")
    return errors, energy


class _TopLevel(NamedTuple):
    """Some rows of a projection at the highest level."""

    scales: np.ndarray  # float32 [groups]
    biases: np.ndarray
    stream: np.ndarray  # codes, uint8 [bytes]
    sums: list[Sums]  # of the weights in units of the codes, with the codes of each lower level
    errors: np.ndarray  # squared, in units of the weights; [groups]


def _keep_codes(projection: Projection, levels: tuple[int, ...], numbers: Codes) -> _TopLevel:
    """The source's own codes, with zeros as lower bits if they have fewer bits than the highest level."""
    top, factor = levels[-1], 1 << (levels[-1] - numbers.bits)
    scales = numbers.scales / np.float32(factor)
    if factor > 1 and not np.array_equal(to_dtype(scales, projection.dtype), scales):
        raise CheckpointError(
            f"{projection.name} has scales that {projection.dtype} cannot hold after division by {factor}, so "
            f"{numbers.bits} bits cannot be kept in {top}; convert the model to bfloat16 first"
        )
    stream, width = numbers.stream, 4
    codes = stream
    if numbers.bits != 4 or top != 4:
        codes, width = unpack(stream, numbers.bits) << np.uint8(top - numbers.bits), 8
        stream = stream if factor == 1 else pack(codes, top)
    sums = [sums_of_codes(codes, width, top, bits, projection.group_size) for bits in levels[:-1]]
    return _TopLevel(scales, _biases(numbers), stream, sums, np.zeros(len(scales)))


def _choose_codes(projection: Projection, levels: tuple[int, ...], weights: np.ndarray) -> _TopLevel:
    """New codes, for weights that are not quantized or whose format cannot be kept."""
    top, weights = levels[-1], weights.reshape(-1, projection.group_size)
    codes, scales, biases, errors = quantize(weights, top, levels[0], projection.dtype)
    values = np.subtract(weights, biases[:, None], out=memory("at", weights.shape))
    values *= (1 / scales)[:, None]
    sums: list[Sums] = []
    for bits in levels[:-1]:
        sums.append(group_sums(values, upper_bits(codes, top - bits), sums[0] if sums else None))
    return _TopLevel(scales, biases, pack(codes.astype(np.uint8).reshape(-1), top), sums, errors)


def _weights(numbers: Codes, size: int) -> np.ndarray:
    """The float32 weights of codes, [groups, group_size]."""
    return unpack(numbers.stream, numbers.bits).reshape(-1, size) * numbers.scales[:, None] + _biases(numbers)[:, None]


def _biases(numbers: Codes) -> np.ndarray:
    return numbers.biases if numbers.biases is not None else numbers.scales * np.float32(-zero_code(numbers.bits))
