"""Record: packs one expert into a record, level by level.

Compiled code does the arithmetic without the interpreter lock (`quantize` describes it), so worker threads run side by side.
"""

from __future__ import annotations

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
    checksums = [core.crc32(record[s.offset : s.offset + s.nbytes]) for s in target.sections]
    return record, [*checksums, core.crc32(errors.tobytes())], errors


def _check_scales(kind: Kind, projection: Projection, top: int, stored: dict[str, np.ndarray]) -> None:
    """Raises `CheckpointError` if the scales cannot be divided, as codes that get more bits need."""
    factor = 1 << (top - kind.bits)
    scales = from_bytes(stored[f"{projection.name}.scales"], kind.dtype) / np.float32(factor)
    if factor > 1 and not np.array_equal(to_dtype(scales, projection.dtype), scales):
        raise CheckpointError(
            f"{projection.name} has scales that {projection.dtype} cannot hold after division by {factor}, so "
            f"{kind.bits} bits cannot be kept in {top}; convert the model to bfloat16 first"
        )
