"""Shapes: writes checkpoints of random weights in the shape of real models, for machines without the real ones.

The weights are those of `engine.packing.random_weights`. They are written layer by layer, in the layout of an MLX-converted
checkpoint.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from engine.errors import HeadraceError
from engine.knobs import GB
from engine.packing.files import write_shards
from engine.packing.random_weights import by_layer, random_model
from engine.shapes.shape import Shape
from engine.system.strict_json import to_json


def make(shape: Shape, folder: Path) -> None:
    """Write a checkpoint of the given shape into `folder`. Raises `HeadraceError` if the folder is not empty, if the disk is
    too small, and if mlx-lm lacks the architecture."""
    if folder.exists() and any(folder.iterdir()):
        raise HeadraceError(f"{folder} is not empty; give a new folder")
    model = random_model(shape)
    size = sum(entry.nbytes for entry in model.tensors.values())
    place = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if size > free:
        raise HeadraceError(
            f"{shape.name} takes {size / GB:.4g} GB, but {place} has {free / GB:.4g} GB free; give a folder on a larger "
            "disk, or a smaller shape"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(model.config, indent=1))
    begin = time.perf_counter()
    checksums = write_shards(folder, by_layer(model.tensors), lambda name, entry: model.values(name))
    seconds = time.perf_counter() - begin
    print(f"{shape.name}: {size / GB:.2f} GB in {len(checksums)} files, {seconds:.0f} s, {folder}")
