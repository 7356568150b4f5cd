"""Routed experts of one layer: their tensors, the byte range of every expert, and the checks that they fit together.

Shapes and types that MLX computes with are written down here, so that opening a checkpoint never imports MLX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from engine.errors import CheckpointError, ReadError

from .dtypes import FLOATS, FP8, ITEM_BYTES, MLX_TYPES
from .sanitize.parts import Part

AFFINE_BITS, AFFINE_GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
FLOAT_MODES = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}  # (bits, group_size) -> mode; scales are uint8
INT4_BITS, INT4_ZERO = 4, 8.0  # compressed-tensors INT4 stores no zero points; INT4_ZERO is the code of a zero weight
FP8_SCALES = "weight_scale_inv"  # DeepSeek's FP8: one scale for each block of a weight
CONVERT = "convert the model with mlx_lm.convert"
PACK = "pack the model first (python -m engine pack)"
LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")  # the first number in a module's name


class Records(Protocol):
    """The records of a packed layer: the same experts at several widths, with checksums."""

    def layer(self, widths: Mapping[str, int]) -> ExpertLayer:
        """The experts at these bits per projection."""

    @property
    def checksums(self) -> np.ndarray:
        """CRC-32 of each section of each expert, uint32 [experts, sections + 1]."""

    def damaged(self, expert: int, section: int) -> ReadError:
        """The error for a section of an expert that does not have its checksum."""


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor of every expert of a layer, such as `gate_proj.weight`, and the place of each expert's part. The places are
    read-only, for a process shares what it has opened."""

    projection: str
    tensor: str
    dtype: str  # safetensors name
    shape: tuple[int, ...]  # of one expert
    file: np.ndarray  # [experts] index into Checkpoint.files
    offset: np.ndarray  # [experts] byte offset in that file
    parts: tuple[ExpertTensor, ...] = ()  # packed codes in several streams: the upper bits first, then the lower ones
    bits: int = 0  # width of packed codes after their streams are joined
    order: np.ndarray | None = None  # column of each code within a block, if reordered (engine.checkpoint.store.bitplanes)
    section: int | None = None  # section number in a packed record; its checksum is stored
    part: Part | None = None  # not one byte range: this part of a stored tensor, whose place is given instead
    stored: tuple[int, ...] = ()  # shape of that stored tensor

    def __post_init__(self) -> None:
        for places in (self.file, self.offset):
            places.flags.writeable = False

    @cached_property
    def name(self) -> str:
        return f"{self.projection}.{self.tensor}"

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one expert's part."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def stored_bytes(self) -> int:
        """Bytes to read for one expert's part."""
        return self.nbytes if self.part is None else math.prod(self.stored) * ITEM_BYTES[self.dtype]

    def from_stored(self, stored: np.ndarray) -> np.ndarray:
        """One expert's part of the bytes read (uint8 [stored_bytes]): uint8 [nbytes]."""
        if self.part is None:
            return stored
        items = stored.view(f"u{ITEM_BYTES[self.dtype]}").reshape(self.stored)
        return np.ascontiguousarray(self.part.take(items)).reshape(-1).view(np.uint8)


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one layer. `block` is the module that holds them, e.g. `model.layers.3.mlp`."""

    block: str
    tensors: tuple[ExpertTensor, ...]
    # Projections without stored biases -> the code of a zero weight. Their biases are minus that code times the scales.
    zeros: Mapping[str, float] = field(default_factory=dict)
    records: Records | None = None  # set in a packed store
    # Set where mlx-lm computes the experts from other values; returns uint8 [experts, bytes] by tensor, once.
    compute: Callable[[], dict[str, np.ndarray]] | None = None

    @property
    def number(self) -> int:
        """The number of the layer in the model; 0 if the block's name has none."""
        return layer_number(self.block)

    @property
    def only_to_pack(self) -> bool:
        """Whether MLX cannot compute with the experts in place, so that they must be packed first."""
        return self.compute is not None or any(t.dtype == FP8 or t.part is not None for t in self.tensors)

    @property
    def experts(self) -> int:
        return len(self.tensors[0].file)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert on disk, all projections."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def projections(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.projection for t in self.tensors))

    def at(self, widths: Mapping[str, int]) -> ExpertLayer:
        """The same experts at these bits per projection, as a store holds them; without a store, the layer itself."""
        return self if self.records is None else self.records.layer(widths)

    def tensor(self, name: str) -> ExpertTensor | None:
        """The tensor called `name` (`gate_proj.scales`), or None."""
        return next((t for t in self.tensors if t.name == name), None)

    def input_dims(self, projection: str) -> int:
        """Columns of a projection's weight before quantization: the rows of the projection that feeds it."""
        other = {"down_proj": "up_proj", "fc2": "fc1", "fc1": "fc2"}.get(projection, "down_proj")
        weight = self.tensor(f"{other}.weight")
        if weight is None:
            raise CheckpointError(f"{self.block} has {projection} but no {other}; copy the missing shards")
        return weight.shape[0]

    def quantization(self, projection: str) -> dict[str, Any] | None:
        """group_size, bits and mode of a projection, derived from its shapes; None if it is not quantized."""
        weight, scales = self.tensor(f"{projection}.weight"), self.tensor(f"{projection}.scales")
        if weight is None or scales is None:
            return None
        columns = self.input_dims(projection)
        bits, group_size = weight.shape[-1] * 32 // columns, columns // scales.shape[-1]
        mode = "affine" if scales.dtype in FLOATS else "nvfp4" if group_size == 16 else f"mxfp{bits}"
        return {"group_size": group_size, "bits": bits, "mode": mode}

    def order(self, projection: str) -> np.ndarray | None:
        """The column of each code within a block of a projection's weight; None if the columns are in order."""
        weight = self.tensor(f"{projection}.weight")
        return None if weight is None else weight.order

    def bits(self, projection: str) -> int:
        """Bits of a projection's weight; 16 for any float type that is not quantized."""
        quantization = self.quantization(projection)
        return 16 if quantization is None else int(quantization["bits"])

    def check(self) -> None:
        """Raises `CheckpointError` unless the tensors fit together and MLX can compute with each projection."""
        parts = {p: {t.tensor: t for t in self.tensors if t.projection == p} for p in self.projections}
        if set(parts) not in ({"gate_proj", "up_proj", "down_proj"}, {"fc1", "fc2"}):
            raise CheckpointError(
                f"{self.block} has the projections {', '.join(parts)}, not gate_proj, up_proj and down_proj, or fc1 and "
                "fc2; copy the missing shards"
            )
        for projection, found in parts.items():
            if len(found["weight"].shape if "weight" in found else ()) != 2 or not self._is_sound(projection, found):
                described = ", ".join(f"{t.tensor} {t.dtype} {[len(t.file), *t.shape]}" for t in found.values())
                raise CheckpointError(
                    f"{self.block}.{projection} has {described}: they do not fit each other, the other projections, or what "
                    f"MLX computes with; copy the checkpoint again, or {CONVERT}"
                )

    def check_against(self, switch: Any) -> None:
        """Raises `CheckpointError` unless mlx-lm's module `switch` has exactly these tensors. If mlx-lm transposes, widens
        or quantizes them on loading, streaming the bytes in place would give other weights."""
        for projection in (name for name in switch if hasattr(switch[name], "num_experts")):
            module, how = switch[projection], self.quantization(projection) or {}
            found = {
                name: f"{str(module[name].dtype).rpartition('.')[2]} {list(module[name].shape)}"
                for name in ("weight", "scales", "biases", "bias", "global_scale")
                if module.get(name) is not None
            }
            own = (t for t in self.tensors if t.projection == projection)
            ours = {t.tensor: f"{MLX_TYPES[t.dtype]} {[self.experts, *t.shape]}" for t in own}
            if projection in self.zeros:
                ours["biases"] = ours["scales"]
            if found != ours or any(getattr(module, key) not in (how[key], None) for key in how):
                raise CheckpointError(
                    f"{self.block}.{projection} has {ours}, but {found} once mlx-lm has opened it: it cannot be streamed "
                    f"in place; {CONVERT}"
                )

    def _is_sound(self, projection: str, found: dict[str, ExpertTensor]) -> bool:
        rows, columns = found["weight"].shape[0], self.input_dims(projection)
        how = self.quantization(projection)
        dtypes: dict[str, tuple[str, ...]] = {"weight": FLOATS, "bias": FLOATS}
        shapes: dict[str, tuple[int, ...]] = {"weight": (rows, columns), "bias": (rows,)}
        if how is not None:
            mode, bits, group_size = how["mode"], how["bits"], how["group_size"]
            affine = mode == "affine" and bits in AFFINE_BITS and group_size in AFFINE_GROUPS
            if columns % max(1, group_size) or not (affine or FLOAT_MODES.get((bits, group_size)) == mode):
                return False
            dtypes["weight"], shapes["weight"] = ("U32",), (rows, columns * bits // 32)
            dtypes["scales"] = FLOATS if affine else ("U8",)
            shapes["scales"] = (rows, columns // group_size)
            if affine and projection not in self.zeros:
                dtypes["biases"], shapes["biases"] = FLOATS, shapes["scales"]
        if projection in self.zeros and (how is None or how["bits"] != 4):  # biases are -8 times the scales at 4 bits only
            return False
        if projection == "gate_proj" and rows != self.input_dims("down_proj"):
            return False
        return shapes.keys() - {"bias"} <= found.keys() <= shapes.keys() and all(
            t.dtype in dtypes[name] and t.shape == shapes[name] and len(t.file) == self.experts for name, t in found.items()
        )


def layer_number(name: str) -> int:
    """The first number in a module's or tensor's name; 0 if there is none."""
    m = LAYER.search(name)
    return int(m[1]) if m else 0
