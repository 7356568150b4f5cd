"""Sources: decodes the experts of any checkpoint, one expert at a time, for packing.

Weights in MLX's affine format stay codes and scales; all others become float32. That includes DeepSeek's FP8, which has one
scale for each block of 128 x 128 weights. Experts that are no byte ranges arrive already put in order
(`engine.checkpoint.experts.ExpertTensor.from_stored`). It is all numpy, because worker threads run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from engine.checkpoint.dtypes import FLOATS, FP8, from_bytes, to_dtype
from engine.checkpoint.experts import AFFINE_GROUPS, FP8_SCALES, ExpertLayer, ExpertTensor
from engine.errors import CheckpointError

GROUP_SIZE = 64  # for weights without groups, if their width is a multiple
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # OCP MX specification 1.0


def _e4m3() -> np.ndarray:
    """Values of the 256 codes of FP8 E4M3, which has no infinities (OCP 8-bit floating point specification 1.0)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    size[(code & 127) == 127] = np.nan
    return np.where(code < 128, size, -size).astype(np.float32)


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A lookup table for pairs of codes, the first in the lower bits: two float32 values as one number of 64 bits."""
    return np.stack(np.meshgrid(first, second), axis=-1).view(np.uint64).reshape(-1)


E4M3 = _e4m3()
E4M3_PAIRS, E2M1_PAIRS = _pairs(E4M3, E4M3), _pairs(E2M1, E2M1)


@dataclass(frozen=True)
class Codes:
    """Rows of a quantized projection: a stream of `bits`-bit codes (uint8 [bytes]) in groups along each row, with a scale
    and a bias per group (float32 [groups]). Without biases the code of a zero weight is the same everywhere."""

    stream: np.ndarray
    bits: int
    scales: np.ndarray
    biases: np.ndarray | None


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

    def rows(self, projection: str, stored: dict[str, np.ndarray], begin: int, end: int) -> Codes | np.ndarray:
        """Rows `begin` to `end` of a projection, from the `stored` tensors of one expert (name -> uint8 [bytes]). Returns
        codes, or float32 weights [rows, columns]."""
        kind = self.kinds[projection]
        shape = (end - begin, kind.columns)
        weight = stored[f"{projection}.weight"].reshape(kind.rows, -1)[begin:end].reshape(-1)
        scales = stored.get(f"{projection}.scales", np.empty(0, np.uint8)).reshape(kind.rows, -1)[begin:end].reshape(-1)
        if kind.mode == "affine":
            biases = stored.get(f"{projection}.biases")
            if biases is not None:
                biases = from_bytes(biases.reshape(kind.rows, -1)[begin:end].reshape(-1), kind.dtype)
            return Codes(weight, kind.bits, from_bytes(scales, kind.dtype), biases)
        if kind.mode == "float":
            return from_bytes(weight, self._tensor(projection, "weight").dtype).reshape(shape)
        if kind.mode == "fp8":
            tensor = self._tensor(projection, FP8_SCALES)
            factors = from_bytes(stored[tensor.name], tensor.dtype).reshape(tensor.shape)
            high, wide = self._block_size
            factors = np.repeat(factors[np.arange(begin, end) // high], wide, axis=1)[:, : kind.columns]
            return to_dtype(_values(weight, E4M3_PAIRS).reshape(shape) * factors, "BF16").reshape(
                shape
            )  # as mlx-lm converts it
        values = _values(weight, E4M3_PAIRS if kind.mode == "mxfp8" else E2M1_PAIRS)
        factors = E4M3[scales] if kind.mode == "nvfp4" else np.exp2(scales.astype(np.float32) - 127)
        return (values.reshape(len(factors), -1) * factors[:, None]).reshape(shape)


def _values(codes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The float32 values of 8-bit or 4-bit codes (uint8 [bytes], an even number of codes)."""
    return pairs.take(codes if len(pairs) == 256 else codes.view("<u2")).view(np.float32)
