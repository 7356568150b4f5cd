"""Pack: a checkpoint becomes a store (`engine.store`), expert by expert.

Packing streams: each worker holds one expert at a time, so memory does not depend on the model's size. A layer's file gets
its name when all of it is on the disk; what was finished before a crash, a full disk or a power cut is not done again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from . import grids
from .checkpoint import EXPERT_NAMES, Checkpoint
from .errors import CheckpointError, HeadraceError
from .headers import Entry, read_headers
from .knobs import GB
from .nesting import halve, pack, unpack
from .sources import Codes, Kind, SourceLayer
from .store import (
    NAME,
    Description,
    Layer,
    Projection,
    chain_for,
    check_chain,
    read_description,
    zero_code,
)

INDEX = "model.safetensors.index.json"
COPIED = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".md")  # files beside the weights that a store has too
SHARD_BYTES = 5_000_000_000
COPY_BYTES = 16 << 20
BLOCK_SIZE = (128, 128)  # of FP8, where config.json does not say
Progress = Callable[[int, int], None]  # bytes of source done, of how many


@dataclass(frozen=True)
class Packed:
    """What packing made."""

    levels: tuple[int, ...]
    layers: int
    kept: int  # layers that were finished before
    source_bytes: int
    store_bytes: int
    exact: int  # projections, over all layers, whose highest level has the source's very weights
    projections: int
    relative_rmse: tuple[float, ...]  # by level, over all experts


def pack_store(
    checkpoint: str | Path,
    store: str | Path,
    levels: tuple[int, ...] | None = None,
    *,
    workers: int | None = None,
    progress: Progress = lambda done, of: None,
) -> Packed:
    """Pack the experts of `checkpoint` into the folder `store`. Without `levels` they are chosen to keep what is quantized
    already as it is. Raises `CheckpointError` for a source that cannot be packed, `HeadraceError` if the folder holds
    something else, or too little space is left."""
    source, store = Checkpoint.open(checkpoint, to_pack=True), Path(store).expanduser()
    if source.levels is not None:
        raise CheckpointError(f"{source.path} is a packed store already; pack the checkpoint that it was made from")
    if store.resolve() == source.path.resolve():
        raise HeadraceError(f"{store} is the checkpoint itself; give another folder for the store")
    layers = [SourceLayer(layer, _block_size(source)) for layer in source.layers]
    if levels is not None:
        check_chain(levels)
    description = _describe(source, layers, levels)
    _prepare(store, description, source)
    size = sum(layer.file_bytes for layer in description.layers)
    todo = [n for n, layer in enumerate(description.layers) if not (store / layer.file).exists()]
    resident = resident_tensors(source)
    copied = sum(entry.nbytes for entry in resident.values())
    _enough_space(store, description, todo, 0 if (store / INDEX).exists() else copied)
    of = copied + sum(_source_bytes(layer) for layer in layers)
    done = copied + sum(_source_bytes(layer) for n, layer in enumerate(layers) if n not in todo)
    with _full_disk_told(store, description):
        _copy_rest(source, store, resident)
        progress(done, of)
        with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
            for number in todo:
                for nbytes in _pack_layer(source, layers[number], description.layers[number], store, pool):
                    done += nbytes
                    progress(done, of)
    kinds = [p for layer in description.layers for p in layer.projections]
    return Packed(
        description.levels, len(layers), len(layers) - len(todo), of, size + copied, sum(p.exact for p in kinds), len(kinds),
        _rmse(Checkpoint.open(store)),
    )  # fmt: skip


def _block_size(source: Checkpoint) -> tuple[int, int]:
    how = source.text_config.get("quantization_config")
    found = how.get("weight_block_size", BLOCK_SIZE) if isinstance(how, dict) else BLOCK_SIZE
    if not (isinstance(found, list | tuple) and len(found) == 2 and all(type(n) is int and n > 0 for n in found)):
        raise CheckpointError(f"{source.path}/config.json has weight_block_size={found}, not two numbers; copy it again")
    return found[0], found[1]


def _describe(source: Checkpoint, layers: list[SourceLayer], levels: tuple[int, ...] | None) -> Description:
    kinds = [kind for layer in layers for kind in layer.kinds.values()]
    levels = levels or chain_for(max((kind.bits for kind in kinds if kind.mode == "affine"), default=0))
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
    return Description(levels, source.fingerprint, tuple(described))


def _prepare(store: Path, description: Description, source: Checkpoint) -> None:
    """The folder with `store.json` in it. Raises `HeadraceError` if it holds anything but a part of this very store."""
    there = read_description(store) if store.is_dir() else None
    if there is not None and there != description:
        what = f"levels {', '.join(map(str, there.levels))}" if there.source == description.source else "another model"
        raise HeadraceError(f"{store} holds a store of {what}; give another folder, or remove this one")
    if there is None:
        if store.exists() and (not store.is_dir() or any(store.iterdir())):
            raise HeadraceError(f"{store} is there and is no store; give a new folder")
        try:
            store.mkdir(parents=True, exist_ok=True)
            _write_whole(store / NAME, [description.as_json().encode()])
        except OSError as e:
            raise HeadraceError(f"{store} cannot be written ({e.strerror}); give another folder for the store") from e


def resident_tensors(source: Checkpoint) -> dict[str, Entry]:
    """Every tensor of the checkpoint's files but those of routed experts, by name."""
    entries = read_headers(source.files, lambda _: None)
    return {name: entry for name, entry in entries.items() if not any(p.match(name) for p in EXPERT_NAMES)}


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
def _full_disk_told(store: Path, description: Description) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise HeadraceError(
                f"packing into {store} stopped ({e.strerror or e}); check the disks and give the same command again, which "
                "goes on where it stopped"
            ) from e
        left = [layer.file_bytes for layer in description.layers if not (store / layer.file).exists()]
        raise HeadraceError(
            f"the disk of {store} is full, with {len(left)} of {len(description.layers)} layers to go; free "
            f"{sum(left) / GB:.4g} GB and give the same command again, which goes on where it stopped"
        ) from e


def _copy_rest(source: Checkpoint, store: Path, tensors: dict[str, Entry]) -> None:
    """Everything that is no expert, byte for byte: config, tokenizer, and the other tensors in shards with an index."""
    for file in sorted(source.path.iterdir()):
        if file.is_file() and file.suffix in COPIED and file.name not in (INDEX, NAME) and not (store / file.name).exists():
            _write_whole(store / file.name, [file.read_bytes()])
    if (store / INDEX).exists():
        return
    shards: list[dict[str, Entry]] = [{}]
    for name, entry in sorted(tensors.items()):
        if shards[-1] and sum(e.nbytes for e in shards[-1].values()) + entry.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = entry
    index = {}
    for number, shard in enumerate(shards, start=1):
        file = store / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, at = {}, 0
        for name, entry in shard.items():
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, at + entry.nbytes]}
            at += entry.nbytes
            index[name] = file.name
        encoded = json.dumps({"__metadata__": {"format": "mlx"}, **header}).encode()
        encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
        _write_whole(file, _bytes_of(source.files, len(encoded).to_bytes(8, "little") + encoded, shard))
    size = sum(entry.nbytes for entry in tensors.values())
    _write_whole(store / INDEX, [json.dumps({"metadata": {"total_size": size}, "weight_map": index}, indent=1).encode()])


def _bytes_of(files: tuple[Path, ...], header: bytes, tensors: dict[str, Entry]) -> Iterator[bytes]:
    yield header
    for entry in tensors.values():
        with open(files[entry.file], "rb") as f:
            for at in range(0, entry.nbytes, COPY_BYTES):
                f.seek(entry.offset + at)
                yield f.read(min(COPY_BYTES, entry.nbytes - at))


def _write_whole(file: Path, parts: Iterator[bytes] | list[bytes]) -> None:
    """Write a file so that it has its name only when all of it is on the disk."""
    partial = file.with_name(f".{file.name}.partial")
    with open(partial, "wb") as f:
        for part in parts:
            f.write(part)
        f.flush()
        os.fsync(f.fileno())
    _rename(partial, file)


def _rename(partial: Path, file: Path) -> None:
    partial.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _pack_layer(
    source: Checkpoint, layer: SourceLayer, target: Layer, store: Path, pool: ThreadPoolExecutor
) -> Iterator[int]:
    """Write one layer's file; yields the bytes of source as they are done."""
    file, partial = store / target.file, store / f".{target.file}.partial"
    errors = np.zeros((target.experts, len(target.projections), len(target.levels)))
    checksums = np.zeros((target.experts, len(target.sections)), np.uint32)
    with contextlib.ExitStack() as stack:
        numbers = sorted({int(n) for t in layer.layer.tensors for n in np.unique(t.file)})
        fds = {n: stack.enter_context(open(source.files[n], "rb")).fileno() for n in numbers}
        out = stack.enter_context(open(partial, "wb"))
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(out.fileno(), 0, target.file_bytes)
        out.write(target.header)
        out.flush()

        def one(expert: int) -> int:
            stored = {}
            for t in layer.layer.tensors:
                stored[t.name] = _read(
                    fds[int(t.file[expert])], int(t.offset[expert]), t.nbytes, source.files[t.file[expert]]
                )
            record, checksums[expert], errors[expert] = make_record(layer, target, stored)
            _pwrite(out.fileno(), record.data, len(target.header) + expert * target.record_bytes)
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
        end = len(target.header) + target.experts * target.record_bytes
        _pwrite(out.fileno(), errors.tobytes(), end)
        _pwrite(out.fileno(), checksums.tobytes(), end + errors.nbytes)
        os.fsync(out.fileno())
    _rename(partial, file)


def _read(fd: int, offset: int, nbytes: int, file: Path) -> np.ndarray:
    out = np.empty(nbytes, np.uint8)
    done = 0
    while done < nbytes:
        count = os.preadv(fd, [out.data[done:]], offset + done)
        if count == 0:
            raise OSError(errno.EIO, f"{file} ends at byte {offset + done}")
        done += count
    return out


def _pwrite(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def make_record(
    layer: SourceLayer, target: Layer, stored: dict[str, np.ndarray]
) -> tuple[np.ndarray, list[int], list[list[float]]]:
    """One expert's record (uint8 [record_bytes]), the checksums of its sections, and its relative squared error by
    projection and level; `stored` are its tensors in the source."""
    parts: dict[tuple[str, str, int], np.ndarray] = {}
    errors = []
    for name, (numbers, bias) in layer.decoded(stored).items():
        projection = next(p for p in target.projections if p.name == name)
        errors.append(_nest(projection, layer.kinds[name], target.levels, numbers, parts))
        if bias is not None:
            parts[name, "bias", 0] = bias
    record = np.zeros(target.record_bytes, np.uint8)
    checksums = []
    for section in target.sections:
        into = record[section.offset : section.offset + section.nbytes]
        into[:] = parts[section.projection, section.tensor, section.level]
        checksums.append(zlib.crc32(into.data))
    return record, checksums, errors


def _nest(
    projection: Projection, kind: Kind, levels: tuple[int, ...], numbers: Codes | np.ndarray,
    parts: dict[tuple[str, str, int], np.ndarray],
) -> list[float]:  # fmt: skip
    """Put scales, biases and codes of one projection at every level into `parts`; returns the relative squared errors."""
    top, size = levels[-1], projection.group_size
    if isinstance(numbers, Codes) and not projection.exact:
        codes = _codes(numbers, kind.bits, size)
        numbers = codes * numbers.scales[:, None] + _biases(numbers, kind.bits)[:, None]
    if isinstance(numbers, Codes):
        factor = 1 << (top - numbers.bits)
        codes = _codes(numbers, top, size)
        scales, biases = numbers.scales / np.float32(factor), _biases(numbers, numbers.bits)
        stream = numbers.stream if factor == 1 else pack(codes.reshape(-1), top)
        values, whole_error = codes.astype(np.float32), np.zeros(len(scales), np.float32)
    else:
        weights = numbers.reshape(-1, size)
        codes, scales, biases = grids.quantize(weights, top, levels[0], projection.dtype)
        stream = pack(codes.reshape(-1), top)
        values = (weights - biases[:, None]) / scales[:, None]
        whole_error = np.square(values - codes).sum(axis=1)
    square = scales.astype(np.float64) ** 2
    offsets = np.divide(biases, scales, out=np.zeros_like(biases), where=scales != 0)
    energy = float((np.square(values + offsets[:, None]).sum(axis=1) * square).sum())
    errors = []
    for level, bits in enumerate(levels):
        error = whole_error
        at_level, biases_at_level = scales, biases
        if bits < top:
            zeros = (zero_code(bits), zero_code(top)) if projection.symmetric else None
            fit = grids.refit(values, codes >> (top - bits), zeros)
            at_level, biases_at_level, error = scales * fit.slope, biases + scales * fit.offset, fit.error
        parts[projection.name, "scales", level] = grids.to_bytes(at_level, projection.dtype)
        parts[projection.name, "biases", level] = grids.to_bytes(biases_at_level, projection.dtype)
        errors.append(float((error * square).sum()) / energy if energy > 0 else 0.0)
    for level in range(len(levels) - 1, 0, -1):
        stream, parts[projection.name, "codes", level] = halve(stream, levels[level])
    parts[projection.name, "codes", 0] = stream
    return errors


def _codes(numbers: Codes, bits: int, size: int) -> np.ndarray:
    """uint8 [groups, group_size] codes, widened to `bits` with zeros below."""
    codes = unpack(numbers.stream, numbers.bits).reshape(-1, size)
    return codes if bits == numbers.bits else codes << (bits - numbers.bits)


def _biases(numbers: Codes, bits: int) -> np.ndarray:
    return numbers.biases if numbers.biases is not None else numbers.scales * np.float32(-zero_code(bits))


def _rmse(store: Checkpoint) -> tuple[float, ...]:
    """Relative root mean square error of the weights by level: over all experts and projections, each as its own unit."""
    assert store.bit_errors is not None
    return tuple(np.sqrt(np.nanmean(store.bit_errors, axis=(0, 1, 2))).tolist())


def verify_store(path: str | Path, progress: Progress = lambda done, of: None) -> list[str]:
    """Read every record and compare its checksums; what is damaged, one line each."""
    store = Checkpoint.open(path)
    if store.levels is None:
        raise CheckpointError(f"{store.path} is no packed store and has no checksums; pack it first (python -m engine pack)")
    bad, done, of = [], 0, store.expert_bytes
    for layer in store.layers:
        assert layer.records is not None
        with open(layer.records.file, "rb") as f, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for damage in pool.map(functools.partial(layer.records.damage, f.fileno()), range(layer.experts)):
                bad += damage
                done += layer.expert_bytes
                progress(done, of)
    return bad
