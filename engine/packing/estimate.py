"""Estimate: what packing a checkpoint would take and give, from headers and measured speeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.files.headers import Entry
from engine.checkpoint.store.records import LayerRecords
from engine.knobs import GB

from .pack import block_size, describe, sorted_out
from .sources import Kind, SourceLayer

# MB of source a second on two cores of a shared machine, least and most of three runs (docs/evidence/packing.md).
MEASURED_MBPS = {
    "affine": (177, 259),
    "INT4": (160, 184),
    "8-bit affine": (141, 206),
    "float": (88, 130),
    "fp8": (31, 47),
    "mxfp4": (21, 37),
}
FLOAT_LEVELS = (4, 8)


@dataclass(frozen=True)
class Estimate:
    """`levels`: bits of the store; `shares`: bytes of an expert at each level over those of the source's experts.

    `seconds`: shortest and longest time by `MEASURED_MBPS`; None if no such source was measured.
    """

    kind: str  # of the source's weights, a key of `MEASURED_MBPS` where it was measured
    levels: tuple[int, ...]
    shares: tuple[float, ...]
    source_gb: float
    store_gb: float
    mbps: tuple[int, int] | None
    seconds: tuple[float, float] | None


def estimate(source: Checkpoint) -> Estimate:
    """Return what packing a checkpoint takes, with levels up to 8 bits for weights that are stored in floats or FP8.

    Raises `CheckpointError` for a source that cannot be packed.
    """
    layers = [SourceLayer(layer, block_size(source)) for layer in source.layers]
    resident, experts = sorted_out(source)
    kind = _kind(next(iter(layers[0].kinds.values())))
    description = describe(source, layers, experts, FLOAT_LEVELS if kind in ("float", "fp8") else None)
    copied = sum(entry.nbytes for entry in resident.values())
    own = sum(layer.layer.expert_bytes * layer.layer.experts for layer in layers)
    at = [0] * len(description.levels)
    for layer in description.layers:
        places = (Entry(dtype, shape, 0, 0) for dtype, shape in layer.tensors.values())
        records = LayerRecords(layer, Path(layer.file), *places)
        for number, bits in enumerate(description.levels):
            at[number] += layer.experts * records.layer({p.name: bits for p in layer.projections}).expert_bytes
    total, mbps = copied + own, MEASURED_MBPS.get(kind)
    store = copied + sum(layer.file_bytes for layer in description.layers)
    seconds = None if mbps is None else (total / 1e6 / mbps[1], total / 1e6 / mbps[0])
    return Estimate(kind, description.levels, tuple(n / own for n in at), total / GB, store / GB, mbps, seconds)


def _kind(kind: Kind) -> str:
    if kind.mode != "affine":
        return kind.mode
    return "INT4" if kind.symmetric else "8-bit affine" if kind.bits > 6 else "affine"
