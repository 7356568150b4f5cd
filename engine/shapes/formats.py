"""Formats: the bytes of weights in each number format in which models are published or converted."""

from __future__ import annotations

from dataclasses import dataclass

from engine.checkpoint.experts import AFFINE_BITS, AFFINE_GROUPS
from engine.errors import HeadraceError

HALF = 2  # bytes of a bfloat16


@dataclass(frozen=True)
class Format:
    """A number format. Weights of a group share a scale and, in some formats, a bias."""

    bits: int  # of a weight
    group_size: int = 1  # weights
    group_bits: int = 0  # of a group's scale and bias
    mode: str = ""  # MLX's name; empty for floats and for formats with which MLX does not compute
    biases: bool = False  # whether a group has a bias

    def nbytes(self, weights: int) -> int:
        """Bytes of a matrix of so many weights."""
        return (weights * self.bits + -(-weights // self.group_size) * self.group_bits) // 8

    @property
    def is_float(self) -> bool:
        """Whether the weights are plain bfloat16."""
        return self.bits == 16


BF16 = Format(16)
PUBLISHED = {
    "bf16": BF16,
    "int4_g32": Format(4, 32, 16, "affine"),  # compressed-tensors, symmetric: no zero points
    "mxfp4": Format(4, 32, 8, "mxfp4"),
    "fp8_b128": Format(8, 128 * 128, 32),  # DeepSeek's FP8: a float32 scale for each block of 128 x 128
}


def affine(bits: int, group_size: int) -> Format:
    """MLX's affine format; bfloat16 at 16 bits. Raises `HeadraceError` for what MLX does not have."""
    if bits == 16:
        return BF16
    if bits not in AFFINE_BITS or group_size not in AFFINE_GROUPS:
        raise HeadraceError(
            f"bits={bits} in groups of {group_size} is no format of MLX; use {', '.join(map(str, AFFINE_BITS))} or 16 bits "
            f"in groups of {', '.join(map(str, AFFINE_GROUPS))}"
        )
    return Format(bits, group_size, 32, "affine", biases=True)
