"""Shapes: writes checkpoints of random weights in the shape of real models, for machines without the real ones.

Weights are 4-bit affine in groups of 64 (routers 8-bit), as mlx-lm converts such models. Codes are random, and the scales
keep activations of order 1. They are written layer by layer, in the layout of an MLX-converted checkpoint.
"""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import HeadraceError
from engine.knobs import GB
from engine.shapes.layout import Tensor, nbytes
from engine.shapes.shape import Shape
from engine.system.strict_json import to_json

BITS, GROUP_SIZE = 4, 64
OF_LAYER = re.compile(r"(.+?\.\d+)\.")


def make(shape: Shape, folder: Path) -> None:
    """Write a checkpoint of the given shape into `folder`. Raises `HeadraceError` if the folder is not empty, if the disk is
    too small, and if mlx-lm lacks the architecture."""
    if folder.exists() and any(folder.iterdir()):
        raise HeadraceError(f"{folder} is not empty; give a new folder")
    made = shape.layout(BITS, GROUP_SIZE)
    _check_disk(shape, folder, sum(map(nbytes, made.tensors.values())))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(made.config, indent=1))
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(made.tensors.items()):
        found = OF_LAYER.match(name)
        layers.setdefault(found[1] if found else "rest", {})[name] = tensor
    rng, begin, written = np.random.default_rng(0), time.perf_counter(), 0
    for number, tensors in enumerate(layers.values(), start=1):
        file = folder / f"model-{number:05d}-of-{len(layers):05d}.safetensors"
        written += _write(file, tensors, rng)
    seconds = time.perf_counter() - begin
    print(f"{shape.name}: {written / GB:.2f} GB in {len(layers)} files, {seconds:.0f} s, {folder}")


def _check_disk(shape: Shape, folder: Path, needed: int) -> None:
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise HeadraceError(
            f"{shape.name} takes {needed / GB:.4g} GB, but {place} has {free / GB:.4g} GB free; give a folder on a larger "
            "disk, or a smaller shape"
        )


def _write(file: Path, tensors: dict[str, Tensor], rng: np.random.Generator) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape)) * (4 if dtype == "U32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    encoded = to_json(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(file, "wb") as f:
        f.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, (dtype, shape) in tensors.items():
            f.write(_values(name, dtype, shape, tensors, rng).tobytes())
    return at


def _values(
    name: str, dtype: str, shape: tuple[int, ...], tensors: dict[str, Tensor], rng: np.random.Generator
) -> np.ndarray:
    """Random codes; scales for weights of variance 1 / columns; biases that centre them; norms of 1."""
    if dtype == "U32":
        return rng.integers(0, 1 << 32, shape, dtype=np.uint32)
    value = 1.0
    if name.endswith((".scales", ".biases")):
        packed = tensors[name.rpartition(".")[0] + ".weight"][1][-1]
        columns = shape[-1] * GROUP_SIZE
        levels = 1 << (packed * 32 // columns)
        scale = (12 / (levels**2 - 1) / columns) ** 0.5
        value = scale if name.endswith(".scales") else -scale * (levels - 1) / 2
    return np.full(shape, np.float32(value).view(np.uint32) >> 16, np.uint16)
