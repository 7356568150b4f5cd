"""Random store: writes a packed store of random weights in the full shape of a model, whose layers share records.

All resident weights are there, and within a layer all experts differ, so reads and computation are those of the real model.
Only a few layers have records of their own, as many as the disk may hold; the others have the records of one of these. The
layers take turns, so that a token reads from every file. A layer's own experts are the records of a real layer in size and
layout. The memory needed is that of a few experts, or of a part of a resident tensor.

Resident weights are not shared between layers: they are read once, and mlx-lm finds them by name in files of its own.
"""

from __future__ import annotations

import math
import os
import shutil
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.experts import layer_number
from engine.checkpoint.files.headers import Entry
from engine.checkpoint.layouts import STACKED
from engine.checkpoint.store.description import (
    NAME,
    Description,
    Layer,
    Projection,
    SourceTensor,
    levels_for,
    read_description,
)
from engine.checkpoint.store.rehearsal import NAME as MARK
from engine.checkpoint.store.rehearsal import Rehearsal, read_rehearsal
from engine.errors import HeadraceError
from engine.knobs import GB
from engine.native import core
from engine.shapes.shape import Shape
from engine.system import atomic
from engine.system.strict_json import to_json
from engine.system.user_cache import cached_file

from .files import INDEX, Progress, reserve, shard_names, write_range, write_shards, write_whole
from .pack import prepared
from .random_weights import BITS, RandomModel, bfloat16, by_layer, grid, random_model

SOURCE = "rehearsal of "  # the description's source, with the shape's name
CHARACTERS = 4  # of a token: about what English text has in large vocabularies
TOKENIZER: dict[str, Any] = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {
        "type": "Split", "pattern": {"Regex": rf"[\s\S]{{1,{CHARACTERS}}}"}, "behavior": "Isolated", "invert": False,
    },
    "post_processor": None, "decoder": None, "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"},
}  # fmt: skip
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class RandomStore:
    """What is to be written, before the first byte: the store of one shape."""

    shape: str
    model: RandomModel
    resident: list[dict[str, Entry]]  # tensors of each shard
    description: Description
    written: tuple[str, ...]  # names of all files

    @property
    def distinct(self) -> int:
        """Layers with records of their own."""
        return len(self.description.own)

    @property
    def resident_bytes(self) -> int:
        return sum(entry.nbytes for shard in self.resident for entry in shard.values())

    @property
    def experts_bytes(self) -> int:
        """Bytes of the records on the disk."""
        return sum(layer.file_bytes for layer in self.description.own)

    @property
    def full_bytes(self) -> int:
        """Bytes of a store of the shape without shared records."""
        return self.resident_bytes + sum(layer.file_bytes for layer in self.description.layers)


def usual_folder(shape: str) -> Path:
    """The folder of a shape's rehearsal in the user's cache folder."""
    return cached_file(f"rehearsal/{shape}")


def plan_store(shape: Shape, disk_gb: float) -> RandomStore:
    """The store of a shape, with as many distinct layers as `disk_gb` holds. Raises `HeadraceError` if the resident weights
    and one layer of each form do not fit, and if mlx-lm lacks the architecture."""
    model = random_model(shape)
    experts: dict[str, dict[str, Entry]] = {}
    for name, entry in model.tensors.items():
        if m := STACKED.match(name):
            experts.setdefault(m["block"], {})[name] = entry
    taken = {name for tensors in experts.values() for name in tensors}
    resident = by_layer({name: entry for name, entry in model.tensors.items() if name not in taken})
    in_order = sorted(experts.items(), key=lambda of: layer_number(of[0]))
    layers = [_layer(model, block, tensors, n, len(experts)) for n, (block, tensors) in enumerate(in_order)]
    room = round(disk_gb * GB) - sum(entry.nbytes for shard in resident for entry in shard.values())
    sources = tuple(SourceTensor(name, model.tensors[name].dtype, model.tensors[name].shape) for name in sorted(taken))
    description = Description(layers[0].levels, SOURCE + shape.name, sources, _shared(layers, room))
    names = (MARK, NAME, "config.json", TOKENIZER_FILE, *shard_names(len(resident)), INDEX)
    plan = RandomStore(shape.name, model, resident, description, (*names, *(layer.file for layer in description.own)))
    need = plan.resident_bytes + plan.experts_bytes
    if need > disk_gb * GB:
        least = math.ceil(need / GB * 100) / 100
        raise HeadraceError(
            f"--disk-gb {disk_gb:g} is below the {need / GB:.4g} GB that {shape.name} needs "
            f"({plan.resident_bytes / GB:.4g} of resident weights, and a layer of experts); give --disk-gb {least:g} or more"
        )
    return plan


def write_store(
    plan: RandomStore, folder: Path, routing: Mapping[str, Any], window_recall: tuple[float, ...],
    progress: Progress = lambda done, of: None,
) -> bool:  # fmt: skip
    """Write the store into `folder`, or finish it. Returns whether there was anything to write. Raises `HeadraceError` if
    the folder holds something else, or the disk has too little space."""
    mark, there = Rehearsal(plan.shape, routing, window_recall, plan.written), read_rehearsal(folder)
    if there is not None and (there.shape, there.files) != (mark.shape, mark.files):
        raise HeadraceError(
            f"{folder} holds a rehearsal of {there.shape} with {len(there.files)} files, not {len(mark.files)}; "
            "give another folder, or remove it with --clean"
        )
    todo = [layer for layer in plan.description.own if not (folder / layer.file).exists()]
    unshared = not (folder / INDEX).exists()
    need = sum(layer.file_bytes for layer in todo) + plan.resident_bytes * unshared
    if not need:
        return False
    _enough_space(folder, need)
    done = 0
    try:
        with prepared(folder, plan.description):
            write_whole(folder / MARK, [mark.as_json().encode()])
            for name, content in {"config.json": plan.model.config, TOKENIZER_FILE: TOKENIZER}.items():
                write_whole(folder / name, [to_json(content, indent=1).encode()])
            if unshared:
                write_shards(folder, plan.resident, lambda name, entry: plan.model.values(name))
                done += plan.resident_bytes
                progress(done, need)
            with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
                for layer in todo:
                    _write_layer(layer, plan.description.digest, folder, pool)
                    done += layer.file_bytes
                    progress(done, need)
    except OSError as e:
        raise HeadraceError(
            f"writing into {folder} stopped ({e.strerror or e}); check the disk and give the same command again, or remove "
            "what was written with --clean"
        ) from e
    return True


def is_complete(folder: Path) -> bool:
    """Whether the folder holds a rehearsal with all of its files."""
    mark = read_rehearsal(folder)
    return mark is not None and all((folder / name).exists() for name in mark.files)


def clean(folder: Path) -> tuple[int, list[str]]:
    """Remove the files that `write_store` wrote into `folder`, and the folder if it is empty then. Returns the bytes removed
    and the names that stay. Raises `HeadraceError` if it is no rehearsal."""
    mark, description = read_rehearsal(folder), read_description(folder)
    if mark is None and (description is None or not description.source.startswith(SOURCE)):
        raise HeadraceError(f"{folder} is no rehearsal, so nothing was removed; give the folder that rehearse has written")
    names = (NAME,) if mark is None else mark.files
    order = sorted(names, key=(NAME, MARK).__contains__)  # the mark goes last, so that --clean can be given again
    removed = 0
    for file in (folder / name for name in order for name in (name, atomic.TEMPORARY.format(name))):
        if file.is_file():
            removed += file.stat().st_size
            file.unlink()
    left = sorted(file.name for file in folder.iterdir())
    if not left:
        folder.rmdir()
    return removed, left


def _layer(model: RandomModel, block: str, tensors: dict[str, Entry], number: int, of: int) -> Layer:
    """A layer with records of its own, for these stacked tensors."""
    found: dict[str, dict[str, tuple[str, Entry]]] = {}
    for name, entry in tensors.items():
        m = STACKED.match(name)
        assert m is not None
        found.setdefault(m["projection"], {})[m["tensor"]] = (name, entry)
    projections = []
    for projection, parts in sorted(found.items()):
        if "scales" not in parts:
            shape = parts["weight"][1].shape
            raise HeadraceError(
                f"{block}.{projection} has {shape[-1]} columns, which 32 does not divide; it cannot be packed"
            )
        (name, weight), (_, scales) = parts["weight"], parts["scales"]
        group = model.group_size(name)
        bias = parts["bias"][1].dtype if "bias" in parts else None
        columns = scales.shape[-1] * group
        projections.append(Projection(projection, weight.shape[1], columns, group, scales.dtype, bias, False, True))
    file = f"experts-{number + 1:05d}-of-{of:05d}.safetensors"
    return Layer(block, file, scales.shape[0], tuple(projections), levels_for(BITS))


def _shared(layers: list[Layer], room: int) -> tuple[Layer, ...]:
    """The layers, all but a few with the records of another one of the same form: as many own ones as `room` bytes hold, at
    least one of each form."""
    forms: dict[tuple[int, tuple[Projection, ...]], list[Layer]] = {}
    for layer in layers:
        forms.setdefault((layer.experts, layer.projections), []).append(layer)
    own = dict.fromkeys(forms, 1)
    room -= sum(some[0].file_bytes for some in forms.values())
    while True:
        wanting = [form for form, some in forms.items() if own[form] < len(some) and some[0].file_bytes <= room]
        if not wanting:
            break
        form = max(wanting, key=lambda form: len(forms[form]) / own[form])
        own[form] += 1
        room -= forms[form][0].file_bytes
    out: dict[str, Layer] = {}
    for form, some in forms.items():
        for number, layer in enumerate(some):
            owner = some[number % own[form]]
            same = owner is layer
            out[layer.block] = Layer(
                layer.block, owner.file, layer.experts, layer.projections, layer.levels, None if same else owner.block
            )
    return tuple(out[layer.block] for layer in layers)


def _enough_space(folder: Path, need: int) -> None:
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(place).free
    if need > free:
        raise HeadraceError(
            f"the rehearsal needs {need / GB:.4g} GB in {folder}, and {free / GB:.4g} GB are free there; free some, give a "
            "folder on another disk with --folder, or a smaller --disk-gb"
        )


def _write_layer(layer: Layer, digest: str, folder: Path, pool: ThreadPoolExecutor) -> None:
    """Write the records of one layer, an expert at a time in each worker."""
    header, template = layer.header(digest), _template(layer)
    top = layer.levels[-1]
    lost = [(4.0 ** (top - bits) - 1) / (4.0**top - 1) for bits in layer.levels]  # variance within upper codes over all
    errors = np.tile(np.array(lost), (layer.experts, len(layer.projections), 1))
    checksums = np.zeros((layer.experts, len(layer.sections) + 1), np.uint32)
    with atomic.replacing(folder / layer.file) as partial, open(partial, "wb", buffering=0) as f:
        out = f.fileno()
        reserve(out, layer.file_bytes)
        write_range(out, header, 0)

        def one(expert: int) -> None:
            rng = np.random.default_rng((zlib.crc32(layer.block.encode()), expert))
            record = template.copy()
            for s in layer.sections:
                if s.tensor == "codes":
                    record[s.offset : s.offset + s.nbytes] = np.frombuffer(rng.bytes(s.nbytes), np.uint8)
            sums = [core.crc32(record[s.offset : s.offset + s.nbytes]) for s in layer.sections]
            checksums[expert] = [*sums, core.crc32(errors[expert].tobytes())]
            write_range(out, record.data, len(header) + expert * layer.record_bytes)

        list(pool.map(one, range(layer.experts)))
        write_range(out, errors.tobytes() + checksums.tobytes(), len(header) + layer.experts * layer.record_bytes)


def _template(layer: Layer) -> np.ndarray:
    """A record with everything but its codes. The upper bits of uniform codes are uniform codes, whose grid has the middle
    of the codes that share them."""
    record, top = np.zeros(layer.record_bytes, np.uint8), layer.levels[-1]
    columns = {p.name: p.columns for p in layer.projections}
    for s in layer.sections:
        if s.tensor in ("scales", "biases"):
            scale, bias = grid(top, columns[s.projection])
            together = 1 << (top - layer.levels[s.level])
            value = scale * together if s.tensor == "scales" else bias + scale * (together - 1) / 2
            record[s.offset : s.offset + s.nbytes] = bfloat16(np.full(s.nbytes // 2, value)).view(np.uint8)
    return record
