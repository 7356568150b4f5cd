"""Packing: turns a checkpoint into a store (`engine.checkpoint.store`), expert by expert.

Each worker holds one expert's record and the source of one of its projections, so memory does not depend on the model's
size. A layer's file gets its name when it is complete on disk, so packing that stopped in a crash, on a full disk or in a
power cut resumes with the layers that are missing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.config import check_config
from engine.checkpoint.experts import ExpertTensor
from engine.checkpoint.files.headers import Entry, read_headers
from engine.checkpoint.fingerprint import another
from engine.checkpoint.layouts import EXPERT_NAMES, PER_EXPERT
from engine.checkpoint.store.description import (
    NAME,
    Description,
    Layer,
    Projection,
    SourceTensor,
    check_levels,
    levels_for,
    read_description,
)  # fmt: skip
from engine.checkpoint.store.records import unwritten
from engine.errors import CheckpointError, HeadraceError
from engine.knobs import GB
from engine.system import atomic
from engine.system.file_lock import lock

from .files import INDEX, Progress, copy_rest, read_range, reserve, write_range, write_whole
from .record import make_record
from .sources import SourceLayer

BLOCK_SIZE = (128, 128)  # of FP8, if config.json does not give it


@dataclass(frozen=True)
class Packed:
    """The result of packing."""

    levels: tuple[int, ...]
    layers: int
    kept: int  # layers complete before this call
    source_bytes: int
    store_bytes: int
    exact: int  # projections, over all layers, whose highest level reproduces the source exactly
    projections: int
    relative_rmse: tuple[float, ...]  # by level, mean over all experts


def pack_store(
    checkpoint: str | Path,
    store: str | Path,
    levels: tuple[int, ...] | None = None,
    *,
    workers: int | None = None,
    progress: Progress = lambda done, of: None,
) -> Packed:
    """Pack the experts of `checkpoint` into the folder `store`, or resume an interrupted packing. The default `levels` keep
    quantized sources exactly. Raises `CheckpointError` for a source that cannot be packed, `HeadraceError` if the folder
    holds something else or the disk has too little space."""
    source, store = Checkpoint.open(checkpoint, to_pack=True), Path(store).expanduser()
    if source.levels is not None:
        raise CheckpointError(f"{source.path} is a packed store already; pack the checkpoint that it was made from")
    if store.resolve() == source.path.resolve():
        raise HeadraceError(f"{store} is the checkpoint itself; give another folder for the store")
    if levels is not None:
        check_levels(levels)
    layers = [SourceLayer(layer, block_size(source)) for layer in source.layers]
    resident, experts = sorted_out(source)
    description = describe(source, layers, experts, levels)
    for layer in description.layers:
        check_config(source.path, unwritten(layer), source.built, source.config)
    with prepared(store, description):
        size = sum(layer.file_bytes for layer in description.layers)
        todo = [n for n, layer in enumerate(description.layers) if not (store / layer.file).exists()]
        copied = sum(entry.nbytes for entry in resident.values())
        _enough_space(store, description, todo, 0 if (store / INDEX).exists() else copied)
        of = copied + sum(_source_bytes(layer) for layer in layers)
        done = copied + sum(_source_bytes(layer) for n, layer in enumerate(layers) if n not in todo)
        with _disk_errors_in_one_line(store, description, copied):
            copy_rest(source, store, resident)
            progress(done, of)
            with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
                for number in todo:
                    for nbytes in _pack_layer(source, layers[number], description, number, store, pool):
                        done += nbytes
                        progress(done, of)
        errors = Checkpoint.open(store).bit_errors
    assert errors is not None
    kinds = [p for layer in description.layers for p in layer.projections]
    return Packed(
        description.levels, len(layers), len(layers) - len(todo), of, size + copied, sum(p.exact for p in kinds), len(kinds),
        tuple(np.sqrt(np.nanmean(errors, axis=(0, 1, 2))).tolist()),
    )  # fmt: skip


def block_size(source: Checkpoint) -> tuple[int, int]:
    """Rows and columns that share a scale in an FP8 source. Raises `CheckpointError`."""
    how = source.text_config.get("quantization_config")
    found = how.get("weight_block_size", BLOCK_SIZE) if isinstance(how, dict) else BLOCK_SIZE
    if not (isinstance(found, list | tuple) and len(found) == 2 and all(type(n) is int and n > 0 for n in found)):
        raise CheckpointError(f"{source.path}/config.json has weight_block_size={found}, not two numbers; copy it again")
    return found[0], found[1]


def describe(
    source: Checkpoint, layers: list[SourceLayer], experts: tuple[SourceTensor, ...], levels: tuple[int, ...] | None
) -> Description:
    """The description of the store that packing makes; `levels` as in `pack_store`."""
    kinds = [kind for layer in layers for kind in layer.kinds.values()]
    levels = levels or levels_for(max((kind.bits for kind in kinds if kind.mode == "affine"), default=0))
    described = []
    for number, layer in enumerate(layers):
        projections = tuple(
            Projection(
                name, kind.rows, kind.columns, kind.group_size, kind.dtype, kind.bias,
                symmetric=kind.symmetric and kind.bits <= levels[-1], exact=kind.bits <= levels[-1],
            )
            for name, kind in layer.kinds.items()
        )  # fmt: skip
        file = f"experts-{number + 1:05d}-of-{len(layers):05d}.safetensors"
        described.append(Layer(layer.layer.block, file, layer.layer.experts, projections, levels))
    return Description(levels, source.fingerprint, experts, tuple(described))


@contextlib.contextmanager
def prepared(store: Path, description: Description) -> Iterator[None]:
    """Hold the locked folder of a store, with `store.json` and without temporary files of a killed process. Raises
    `HeadraceError` if the folder holds anything but a part of this store, or if another process is packing into it."""
    try:
        there = read_description(store)
        if there is not None and there != description:
            what = another(there.source, description.source)
            if there.source == description.source:
                what = f"levels {','.join(map(str, there.levels))}"
            raise HeadraceError(f"{store} holds a store of {what}; give another folder, or remove this one")
        found = set(store.iterdir()) if store.exists() else set()
        if there is None and found - set(store.glob(atomic.TEMPORARY.format("*"))):
            raise HeadraceError(f"{store} is not empty and is not a store; give a new folder")
        store.mkdir(parents=True, exist_ok=True)
        if there is None:
            write_whole(store / NAME, [description.as_json().encode()])
        held = open(store / NAME)  # noqa: SIM115  # until packing ends
    except OSError as e:
        raise HeadraceError(f"{store} cannot be written ({e.strerror}); give another folder for the store") from e
    with held:
        try:
            lock(held, store)
        except BlockingIOError as e:
            raise HeadraceError(f"{store} is being packed by another process; wait for it, or give another folder") from e
        for partial in store.glob(atomic.TEMPORARY.format("*")):
            partial.unlink()
        yield


def sorted_out(source: Checkpoint) -> tuple[dict[str, Entry], tuple[SourceTensor, ...]]:
    """The resident tensors of the checkpoint by name, and the tensors of routed experts."""
    resident: dict[str, Entry] = {}
    experts: dict[str, SourceTensor] = {}
    for name, entry in read_headers(source.files).items():
        if m := PER_EXPERT.match(name):
            name = f"{name[: m.start('expert')]}*{name[m.end('expert') :]}"
            count = max(int(m["expert"]) + 1, experts[name].experts if name in experts else 0)
            experts[name] = SourceTensor(name, entry.dtype, entry.shape, count)
        elif name in source.followed or any(pattern.match(name) for pattern in EXPERT_NAMES):
            experts[name] = SourceTensor(name, entry.dtype, entry.shape)
        else:
            resident[name] = entry
    return resident, tuple(experts.values())


def _source_bytes(layer: SourceLayer) -> int:
    return layer.layer.expert_bytes * layer.layer.experts


def _enough_space(store: Path, description: Description, todo: list[int], copied: int) -> None:
    need = copied + sum(description.layers[n].file_bytes for n in todo)
    free = shutil.disk_usage(store).free
    if need > free:
        raise HeadraceError(
            f"packing into {store} needs {need / GB:.4g} GB more, and {free / GB:.4g} GB are free; free some, or give a "
            "folder on another disk"
        )


@contextlib.contextmanager
def _disk_errors_in_one_line(store: Path, description: Description, copied: int) -> Iterator[None]:
    """Turn an error of the disk into one line."""
    try:
        yield
    except OSError as e:
        again = "give the same command again to resume it"
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise HeadraceError(f"packing into {store} stopped ({e.strerror or e}); check the disks and {again}") from e
        left = [layer.file_bytes for layer in description.layers if not (store / layer.file).exists()]
        need = sum(left) + (0 if (store / INDEX).exists() else copied)
        raise HeadraceError(
            f"the disk of {store} is full, with {len(left)} of {len(description.layers)} layers to go; make room for "
            f"{need / GB:.4g} GB and {again}"
        ) from e


def _pack_layer(
    source: Checkpoint, layer: SourceLayer, description: Description, number: int, store: Path, pool: ThreadPoolExecutor
) -> Iterator[int]:
    """Write one layer's file; yields the numbers of source bytes packed."""
    target = description.layers[number]
    header = target.header(description.digest)
    errors = np.zeros((target.experts, len(target.projections), len(target.levels)))
    checksums = np.zeros((target.experts, len(target.sections) + 1), np.uint32)
    with contextlib.ExitStack() as stack:
        partial = stack.enter_context(atomic.replacing(store / target.file))
        computed = layer.layer.compute() if layer.layer.compute is not None else None
        numbers = sorted({int(n) for t in layer.layer.tensors for n in np.unique(t.file)} if computed is None else ())
        fds = {n: stack.enter_context(open(source.files[n], "rb")).fileno() for n in numbers}
        out = stack.enter_context(open(partial, "wb", buffering=0)).fileno()
        reserve(out, target.file_bytes)
        write_range(out, header, 0)

        def one(expert: int) -> int:
            def read(t: ExpertTensor) -> np.ndarray:
                if computed is not None:
                    return computed[t.name][expert]
                shard = int(t.file[expert])
                return t.from_stored(read_range(fds[shard], int(t.offset[expert]), t.stored_bytes, source.files[shard]))

            record, checksums[expert], errors[expert] = make_record(layer, target, read)
            write_range(out, record.data, len(header) + expert * target.record_bytes)
            return layer.layer.expert_bytes

        waiting: set[Future[int]] = {pool.submit(one, expert) for expert in range(target.experts)}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield sum(future.result() for future in done)
        finally:
            for future in waiting:
                future.cancel()
            wait(waiting)
        end = len(header) + target.experts * target.record_bytes
        write_range(out, errors.tobytes() + checksums.tobytes(), end)
