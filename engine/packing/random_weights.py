"""Random weights: the tensors of a model in a published shape, with random values, for machines without the real model.

Weights are 4-bit affine in groups of 64, as mlx-lm converts such models (`engine.shapes.layout`). Codes are uniform, and the
scales give weights of mean 0 and variance 1 / columns, which keeps activations of order 1. Norms are 1, biases 0. The values
depend on the tensor's name alone and are made in parts, so memory does not depend on a tensor's size.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.checkpoint.dtypes import ITEM_BYTES
from engine.checkpoint.files.headers import Entry
from engine.shapes.shape import GROUP_SIZE, Shape

BITS = 4
PART_BYTES = 8 << 20


@dataclass(frozen=True)
class RandomModel:
    """A model's config.json with its quantization, and its tensors by name, as an MLX conversion has them."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Entry]  # file and offset are 0

    def group_size(self, name: str) -> int:
        """Columns that share a scale in the weight to which the tensor `name` belongs."""
        how = self.config["quantization"]
        return int(how.get(name.rpartition(".")[0], how)["group_size"])

    def values(self, name: str) -> Iterator[bytes]:
        """The bytes of a tensor, in parts."""
        entry = self.tensors[name]
        items = math.prod(entry.shape)
        weight = self.tensors.get(f"{name.rpartition('.')[0]}.weight")
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        at_once = PART_BYTES // ITEM_BYTES[entry.dtype]
        for count in (min(at_once, items - begin) for begin in range(0, items, at_once)):
            if entry.dtype == "U32":
                yield rng.bytes(4 * count)
            elif name.endswith((".scales", ".biases")) and weight is not None and weight.dtype == "U32":
                columns = entry.shape[-1] * self.group_size(name)
                scale, bias = grid(weight.shape[-1] * 32 // columns, columns)
                yield bfloat16(np.full(count, scale if name.endswith(".scales") else bias)).tobytes()
            elif len(entry.shape) > 1:
                yield bfloat16(rng.standard_normal(count, np.float32) / math.sqrt(entry.shape[-1])).tobytes()
            else:
                one = name.endswith(".weight") or "norm" in name
                yield bfloat16(np.full(count, 1.0 if one else 0.0)).tobytes()


def random_model(shape: Shape) -> RandomModel:
    """The tensors of a shape at BITS, in groups of GROUP_SIZE, or of 32 if a matrix of its experts has other columns.
    Raises `HeadraceError` for an architecture that mlx-lm lacks."""
    for group_size in (GROUP_SIZE, 32):
        made = shape.layout(BITS, group_size)
        if all(
            f"{path}.{name}.scales" in made.tensors
            for path in made.experts
            for name in ("down_proj", "up_proj", "fc1", "fc2")
            if f"{path}.{name}.weight" in made.tensors
        ):
            break
    return RandomModel(made.config, {name: Entry(*tensor, 0, 0) for name, tensor in sorted(made.tensors.items())})


def by_layer(tensors: Mapping[str, Entry]) -> list[dict[str, Entry]]:
    """The tensors of each layer, and all others together."""
    groups: dict[str, dict[str, Entry]] = {}
    for name, entry in tensors.items():
        prefix, layers, rest = name.partition("layers.")
        groups.setdefault(f"{prefix}{layers}{rest.partition('.')[0]}" if layers else "rest", {})[name] = entry
    return list(groups.values())


def grid(bits: int, columns: int) -> tuple[float, float]:
    """Scale and bias with which uniform codes are weights of mean 0 and variance 1 / columns."""
    levels = 1 << bits
    scale = math.sqrt(12 / (levels**2 - 1) / columns)
    return scale, -scale * (levels - 1) / 2


def bfloat16(numbers: np.ndarray) -> np.ndarray:
    """The numbers rounded to zero in bfloat16, as uint16."""
    return (np.asarray(numbers, np.float32).view(np.uint32) >> 16).astype(np.uint16)
