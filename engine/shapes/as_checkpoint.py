"""As checkpoint: a shape as an opened checkpoint that has no files.

Everything that is computed from headers alone takes it: bits, slots, footprint, ceilings. Nothing can be read from it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.dtypes import HALF
from engine.checkpoint.experts import INT4_ZERO, ExpertLayer, ExpertTensor
from engine.checkpoint.fingerprint import Blocks
from engine.system.strict_json import to_json

from .layout import Layout, nbytes
from .shape import GROUP_SIZE, Shape


def as_checkpoint(shape: Shape, bits: int | None = None, group_size: int = GROUP_SIZE) -> Checkpoint:
    """The checkpoint that `shape` has as mlx-lm converts it to `bits`, or in its own formats. Its path is the shape's name.

    Raises `HeadraceError` as `Shape.layout` does.
    """
    made = shape.layout(bits, group_size)
    resident = [tensor for name, tensor in made.tensors.items() if not made.is_expert(name)]
    tensors = sorted((name, *tensor) for name, tensor in made.tensors.items())
    digest = hashlib.sha256(to_json([made.config, tensors], sort_keys=True).encode()).hexdigest()
    none = np.zeros(0, np.int64)
    return Checkpoint(
        path=Path(shape.name),
        config=made.config,
        files=(),
        layers=tuple(_layer(path, made) for path in made.experts),
        rest_bytes=made.resident_bytes,
        half_bytes=sum(nbytes(tensor) for tensor in resident if tensor[0] in HALF),
        header_digest=digest,
        tensors=len(tensors),
        blocks=Blocks(none.astype(np.int32), none, none.astype(np.int32), digest),
    )


def _layer(path: str, made: Layout) -> ExpertLayer:
    """The experts of one switch. Their tensors are in the order of their names, as in a file."""
    tensors = []
    for name, (dtype, shape) in sorted(made.tensors.items()):
        if name.startswith(f"{path}."):
            projection, _, tensor = name[len(path) + 1 :].rpartition(".")
            nowhere = np.zeros(shape[0], np.int64)
            tensors.append(ExpertTensor(projection, tensor, dtype, shape[1:], nowhere, nowhere))
    zeros = dict.fromkeys((t.projection for t in tensors), INT4_ZERO) if made.symmetric else {}
    return ExpertLayer(path.rpartition(".")[0], tuple(tensors), zeros)
