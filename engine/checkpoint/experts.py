"""The routed experts of one layer: their tensors, where each expert's bytes lie, and whether it all fits together.

Nothing here imports MLX; what MLX can compute with is written down as shapes and types.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.errors import CheckpointError, ReadError

from .headers import ITEM_BYTES

if TYPE_CHECKING:
    from .store import Records

FLOATS = ("F32", "F16", "BF16")
MLX_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "U32": "uint32", "U8": "uint8"}
AFFINE_BITS, AFFINE_GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
FLOAT_MODES = {(4, 32): "mxfp4", (8, 32): "mxfp8", (4, 16): "nvfp4"}  # bits and group_size; their scales are uint8
INT4_BITS, INT4_ZERO = 4, 8.0  # compressed-tensors INT4: no zero points are stored, this is the code of a zero weight
FP8, FP8_SCALES = "F8_E4M3", "weight_scale_inv"  # DeepSeek's: weights in blocks, each with a scale
CONVERT = "convert the model with mlx_lm.convert"
PACK = "pack the model first (python -m engine pack)"


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor of every expert of a layer, e.g. `gate_proj.weight`: where each expert's part of it lies."""

    projection: str
    tensor: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]  # of one expert
    file: np.ndarray  # [experts] index into Checkpoint.files
    offset: np.ndarray  # [experts] byte offset in that file
    parts: tuple[ExpertTensor, ...] = ()  # of codes that come in several pieces: the upper bits, then what is below them
    bits: int = 0  # of such a code, when whole
    order: np.ndarray | None = None  # of codes whose columns are reordered: the column of each in a block (engine.nesting)
    section: int | None = None  # its number in a store's records, whose checksums are known

    @cached_property
    def name(self) -> str:
        return f"{self.projection}.{self.tensor}"

    @cached_property
    def nbytes(self) -> int:
        """Bytes of one expert's part."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one layer. `block` is the module that holds them, e.g. `model.layers.3.mlp`."""

    block: str
    tensors: tuple[ExpertTensor, ...]
    # Of projections whose biases are not stored: the code of a zero weight; biases are minus that times the scales.
    zeros: Mapping[str, float] = field(default_factory=dict)
    records: Records | None = None  # of a store, which has the same experts at other widths too

    @property
    def only_to_pack(self) -> bool:
        """The experts lie in a layout that MLX cannot compute with in place."""
        return any(t.dtype == FP8 or t.tensor == "blocks" for t in self.tensors)

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

    def verify(self, expert: int, read: list[tuple[int | None, memoryview]]) -> None:
        """Compare the checksums of what was `read` of an expert, by section. Raises `ReadError` for a difference."""
        assert self.records is not None
        for section, view in read:
            if section is not None and zlib.crc32(view) != self.records.checksums[expert, section]:
                raise ReadError(
                    f"{self.block} expert {expert} is damaged: its {self.records.section_name(section)} does not have the "
                    "checksum that it was packed with; copy the store's file again, or pack the model again"
                )

    def at(self, widths: Mapping[str, int]) -> ExpertLayer:
        """The same experts with these bits by projection, as a store has them; without a store, the layer itself."""
        return self if self.records is None else self.records.layer(widths)

    def tensor(self, name: str) -> ExpertTensor | None:
        """The tensor of that name (`gate_proj.scales`), or None."""
        return next((t for t in self.tensors if t.name == name), None)

    def input_dims(self, projection: str) -> int:
        """Columns of a projection's weight before packing: what goes in is what the other side puts out."""
        other = {"down_proj": "up_proj", "fc2": "fc1", "fc1": "fc2"}.get(projection, "down_proj")
        weight = self.tensor(f"{other}.weight")
        if weight is None:
            raise CheckpointError(f"{self.block} has {projection} but no {other}; copy the missing shards")
        return weight.shape[0]

    def quantization(self, projection: str) -> dict[str, Any] | None:
        """group_size, bits and mode of a projection, or None if it is not quantized; the shapes determine them."""
        weight, scales = self.tensor(f"{projection}.weight"), self.tensor(f"{projection}.scales")
        if weight is None or scales is None:
            return None
        columns = self.input_dims(projection)
        bits, group_size = weight.shape[-1] * 32 // columns, columns // scales.shape[-1]
        mode = "affine" if scales.dtype in FLOATS else "nvfp4" if group_size == 16 else f"mxfp{bits}"
        return {"group_size": group_size, "bits": bits, "mode": mode}

    def order(self, projection: str) -> np.ndarray | None:
        """The column of each code of a projection's weight in a block of them, where they are reordered."""
        weight = self.tensor(f"{projection}.weight")
        return None if weight is None else weight.order

    def bits(self, projection: str) -> int:
        """Bits of a projection's weight; 16 for any float type that is not quantized."""
        quantization = self.quantization(projection)
        return 16 if quantization is None else int(quantization["bits"])

    def check(self) -> None:
        """Raises `CheckpointError` unless the tensors fit together and each projection is one MLX can compute with."""
        parts = {p: {t.tensor: t for t in self.tensors if t.projection == p} for p in self.projections}
        if set(parts) not in ({"gate_proj", "up_proj", "down_proj"}, {"fc1", "fc2"}):
            raise CheckpointError(
                f"{self.block} has the projections {', '.join(parts)} of gate_proj, up_proj and down_proj, or fc1 and fc2; "
                "copy the missing shards"
            )
        for projection, found in parts.items():
            if len(found["weight"].shape if "weight" in found else ()) != 2 or not self._is_sound(projection, found):
                described = ", ".join(f"{t.tensor} {t.dtype} {[len(t.file), *t.shape]}" for t in found.values())
                raise CheckpointError(
                    f"{self.block}.{projection} has {described}: they do not fit each other, the other projections, or what "
                    f"MLX computes with; copy the checkpoint again, or {CONVERT}"
                )

    def check_against(self, switch: Any) -> None:
        """Raises `CheckpointError` unless the switch that mlx-lm opened has these very tensors: what it changes on the way
        (transposes, widens, quantizes) is not what streaming would read."""
        for projection in (name for name in switch if isinstance(switch[name], dict) and "weight" in switch[name]):
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
        if projection in self.zeros and (how is None or how["bits"] != 4):  # the biases would not be -8 times the scales
            return False
        if projection == "gate_proj" and rows != self.input_dims("down_proj"):
            return False
        return shapes.keys() - {"bias"} <= found.keys() <= shapes.keys() and all(
            t.dtype in dtypes[name] and t.shape == shapes[name] and len(t.file) == self.experts for name, t in found.items()
        )
