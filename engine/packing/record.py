"""Record: packs one expert into a record, level by level.

Compiled code does the arithmetic without the interpreter lock (engine/native/projection.cpp), so worker threads run side by
side. A record has the same bytes on every machine: each sum has one order, whatever the CPU's vectors and the number of threads.

The codes of the highest level are fixed first. A lower level has their upper bits, and its scale and bias are the line through
the group's weights over these upper codes with the smallest squared error. A source in MLX's affine format keeps its codes. For
other sources the codes are chosen. With levels of 2 and 4 bits they are chosen so that both levels are good:

1. For a few grids over smaller and shifted parts of a group's range, the places of the weights in 128 bins estimate the error e4
   of the highest level and the error e2 of the lowest one. The grid with the smallest e2 + 2.75 e4 is taken.
2. Both grids are refitted to the codes, and the codes to both grids, for the same sum: a weight near the border of two upper
   codes goes to the side that is better for both levels together, which is not always the side of the nearest code.
3. The error of the highest level over a run of rows must not exceed that of mx.quantize. If it does, the groups that lose the
   most take the grid and codes of mx.quantize.

`python -m engine bench grids` measures the gain.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from engine.checkpoint.dtypes import from_bytes, to_dtype
from engine.checkpoint.experts import ExpertTensor
from engine.checkpoint.store.description import Layer, Projection
from engine.checkpoint.store.records import zero_code
from engine.errors import CheckpointError
from engine.native import core

from .sources import Kind, SourceLayer


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
        if projection.exact:
            _check_scales(layer.kinds[projection.name], projection, target.levels[-1], stored)
        described = (
            projection.dtype, projection.exact, projection.symmetric, target.levels, tuple(map(zero_code, target.levels)),
            tuple(
                (parts["scales", level], parts.get(("biases", level)), parts["codes", level])
                for level in range(len(target.levels))
            ),
        )  # fmt: skip
        packed = core.pack_projection(layer.source(projection.name, stored), described)
        if packed is None:
            what = "scales or biases" if projection.exact else "weights"
            raise CheckpointError(f"{target.block}.{projection.name}: {what} are not finite; copy the checkpoint again")
        squared_errors, energy = packed
        errors[number] = np.array(squared_errors) / (energy or 1.0)
    checksums = [zlib.crc32(record[s.offset : s.offset + s.nbytes].data) for s in target.sections]
    return record, [*checksums, zlib.crc32(errors.tobytes())], errors


def _check_scales(kind: Kind, projection: Projection, top: int, stored: dict[str, np.ndarray]) -> None:
    """Raises `CheckpointError` if the scales cannot be divided, as codes that get more bits need."""
    factor = 1 << (top - kind.bits)
    scales = from_bytes(stored[f"{projection.name}.scales"], kind.dtype) / np.float32(factor)
    if factor > 1 and not np.array_equal(to_dtype(scales, projection.dtype), scales):
        raise CheckpointError(
            f"{projection.name} has scales that {projection.dtype} cannot hold after division by {factor}, so "
            f"{kind.bits} bits cannot be kept in {top}; convert the model to bfloat16 first"
        )
