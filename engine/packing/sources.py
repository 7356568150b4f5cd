"""Sources: describes the experts of any checkpoint to the compiled code that decodes them, one expert at a time.

Weights in MLX's affine format stay codes and scales when packed; all others become float32. That includes DeepSeek's FP8,
which has one scale for each block of 128 x 128 weights. Experts that are no byte ranges arrive already put in order
(`engine.checkpoint.experts.ExpertTensor.from_stored`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from engine.checkpoint.dtypes import FLOATS, FP8
from engine.checkpoint.experts import AFFINE_GROUPS, FP8_SCALES, ExpertLayer, ExpertTensor
from engine.checkpoint.store.records import zero_code
from engine.errors import CheckpointError
from engine.native import core

GROUP_SIZE = 64  # for weights without groups, if their width is a multiple


@dataclass(frozen=True)
class Kind:
    """Properties of a projection. `mode` is the stored format: affine, float, fp8, mxfp4, mxfp8 or nvfp4."""

    rows: int
    columns: int
    mode: str
    bits: int  # 16 if not affine
    group_size: int
    dtype: str  # of the scales
    symmetric: bool
    bias: str | None


class SourceLayer:
    """One layer of experts of a checkpoint opened with `to_pack`."""

    def __init__(self, layer: ExpertLayer, block_size: tuple[int, int]) -> None:
        self.layer = layer
        self._block_size = block_size

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The projections, by name. Raises `CheckpointError` for tensors that do not fit together."""
        found = {}
        for name in self.layer.projections:
            weight, bias = self._tensor(name, "weight"), self.layer.tensor(f"{name}.bias")
            how = self.layer.quantization(name)
            columns = self.layer.input_dims(name)
            mode = "fp8" if weight.dtype == FP8 else "float" if how is None else str(how["mode"])
            affine = mode == "affine"
            scales = self._tensor(name, "scales") if affine else None
            found[name] = Kind(
                weight.shape[0], columns, mode, int(how["bits"]) if how is not None and affine else 16,
                int(how["group_size"]) if how is not None and affine else self._group_size(name, columns),
                scales.dtype if scales is not None else weight.dtype if weight.dtype in FLOATS else "BF16",
                name in self.layer.zeros, None if bias is None else bias.dtype,
            )  # fmt: skip
            if mode == "fp8":
                self._check_blocks(name, weight)
        return self._sound(found)

    def _sound(self, kinds: dict[str, Kind]) -> dict[str, Kind]:
        """Raises `CheckpointError` unless the projections fit each other, which opening has not checked."""
        last = kinds.get("down_proj") or kinds.get("fc2")
        first = [kind for kind in kinds.values() if kind is not last]
        names = set(kinds) in ({"gate_proj", "up_proj", "down_proj"}, {"fc1", "fc2"})
        sizes = names and last is not None and all((k.rows, k.columns) == (last.columns, last.rows) for k in first)
        if not sizes or any(len(t.file) != self.layer.experts for t in self.layer.tensors) or not self._all_whole(kinds):
            described = ", ".join(f"{t.name} {t.dtype} {[len(t.file), *t.shape]}" for t in self.layer.tensors)
            raise CheckpointError(
                f"{self.layer.block} has {described}: they do not fit each other; copy the checkpoint again"
            )
        return kinds

    def _all_whole(self, kinds: dict[str, Kind]) -> bool:
        """Whether biases have one float per row, and unquantized weights all their columns."""
        for name, kind in kinds.items():
            bias = self.layer.tensor(f"{name}.bias")
            weight = self.layer.tensor(f"{name}.weight")
            if bias is not None and (bias.dtype not in FLOATS or bias.shape != (kind.rows,)):
                return False
            if kind.mode in ("fp8", "float") and (weight is None or weight.shape != (kind.rows, kind.columns)):
                return False
        return True

    def _check_blocks(self, name: str, weight: ExpertTensor) -> None:
        scales = self._tensor(name, FP8_SCALES)
        wanted = tuple(-(-n // size) for n, size in zip(weight.shape, self._block_size, strict=True))
        if scales.shape != wanted or scales.dtype not in FLOATS:
            raise CheckpointError(
                f"{self.layer.block}.{name}.{FP8_SCALES} is {scales.dtype} {list(scales.shape)}, not floats {list(wanted)} "
                f"for a weight {list(weight.shape)} in blocks of {list(self._block_size)}; copy the checkpoint again"
            )

    def _group_size(self, name: str, columns: int) -> int:
        size = next((size for size in (GROUP_SIZE, *AFFINE_GROUPS) if columns % size == 0), None)
        if size is None:
            raise CheckpointError(f"{self.layer.block}.{name} has {columns} columns, no multiple of 32; it cannot be packed")
        return size

    def _tensor(self, projection: str, tensor: str) -> ExpertTensor:
        found = self.layer.tensor(f"{projection}.{tensor}")
        if found is None:
            raise CheckpointError(f"{self.layer.block}.{projection} has no {tensor}; copy the missing shards")
        return found

    def tensors(self, projection: str) -> tuple[ExpertTensor, ...]:
        """The stored tensors of a projection."""
        return tuple(t for t in self.layer.tensors if t.projection == projection)

    def bias(self, projection: str, stored: dict[str, np.ndarray]) -> np.ndarray | None:
        """The stored bias of the linear layer (uint8 [bytes]); None if it has none."""
        return stored.get(f"{projection}.bias")

    def source(self, projection: str, stored: dict[str, np.ndarray]) -> tuple[Any, ...]:
        """A projection for `engine.native.core`, from the `stored` tensors of one expert (name -> uint8 [bytes])."""
        kind = self.kinds[projection]
        dtype, scales = kind.dtype, stored.get(f"{projection}.scales")
        if kind.mode == "float":
            dtype = self._tensor(projection, "weight").dtype
        if kind.mode == "fp8":
            factors = self._tensor(projection, FP8_SCALES)
            dtype, scales = factors.dtype, stored[factors.name]
        zero = zero_code(kind.bits) if kind.mode == "affine" else 0.0
        return (
            kind.mode, dtype, kind.bits, kind.group_size, zero, kind.rows, kind.columns, *self._block_size,
            stored[f"{projection}.weight"], scales, stored.get(f"{projection}.biases"),
        )  # fmt: skip

    def weights(self, projection: str, stored: dict[str, np.ndarray]) -> np.ndarray:
        """The weights of one expert, float32 [rows, columns], from its `stored` tensors."""
        kind = self.kinds[projection]
        out = np.empty((kind.rows, kind.columns), np.float32)
        core.decode_weights(self.source(projection, stored), out)
        return out
