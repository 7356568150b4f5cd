"""Pack: a checkpoint becomes a store (`engine.checkpoint.store`), expert by expert.

Packing streams: each worker holds one expert's record and the source of one of its projections, so memory does not depend
on the model's size. A layer's file gets its name when all of it is on the disk; what was finished before a crash, a full
disk or a power cut is not done again. The arithmetic goes over runs of rows that fit into a core's cache.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.checkpoint.bitplanes import halve, pack, unpack
from engine.checkpoint.checkpoint import EXPERT_NAMES, PER_EXPERT, Checkpoint, agrees_with_config
from engine.checkpoint.experts import ExpertTensor
from engine.checkpoint.fingerprint import another
from engine.checkpoint.headers import Entry, read_headers
from engine.checkpoint.store import (
    NAME,
    Description,
    Layer,
    Projection,
    SourceTensor,
    chain_for,
    check_chain,
    read_description,
    zero_code,
)
from engine.errors import CheckpointError, HeadraceError, first_line
from engine.knobs import GB
from engine.system import atomic

from . import quantize as grids
from .sources import Codes, SourceLayer

INDEX = "model.safetensors.index.json"
CHECKSUMS = "crc32"  # in the index, by shard
COPIED = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".md")  # files beside the weights that a store has too
SHARD_BYTES = 5_000_000_000
COPY_BYTES = 1 << 20
AT_ONCE = 1 << 19  # weights: fewer, and threads wait for each other more than they work; more, and memory does
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
    if levels is not None:
        check_chain(levels)
    layers = [SourceLayer(layer, block_size(source)) for layer in source.layers]
    resident, experts = _sorted_out(source)
    description = _describe(source, layers, experts, levels)
    for layer in description.layers:
        agrees_with_config(source.path, layer.opened(), source.text_config, None)
    with _prepared(store, description):
        size = sum(layer.file_bytes for layer in description.layers)
        todo = [n for n, layer in enumerate(description.layers) if not (store / layer.file).exists()]
        copied = sum(entry.nbytes for entry in resident.values())
        _enough_space(store, description, todo, 0 if (store / INDEX).exists() else copied)
        of = copied + sum(_source_bytes(layer) for layer in layers)
        done = copied + sum(_source_bytes(layer) for n, layer in enumerate(layers) if n not in todo)
        with _full_disk_told(store, description, copied):
            _copy_rest(source, store, resident)
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
    """Rows and columns that share a scale in FP8."""
    how = source.text_config.get("quantization_config")
    found = how.get("weight_block_size", BLOCK_SIZE) if isinstance(how, dict) else BLOCK_SIZE
    if not (isinstance(found, list | tuple) and len(found) == 2 and all(type(n) is int and n > 0 for n in found)):
        raise CheckpointError(f"{source.path}/config.json has weight_block_size={found}, not two numbers; copy it again")
    return found[0], found[1]


def _describe(
    source: Checkpoint, layers: list[SourceLayer], experts: tuple[SourceTensor, ...], levels: tuple[int, ...] | None
) -> Description:
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
    return Description(levels, source.fingerprint, experts, tuple(described))


@contextlib.contextmanager
def _prepared(store: Path, description: Description) -> Iterator[None]:
    """The folder with `store.json` in it, locked, and without what a killed process left half written. Raises
    `HeadraceError` if it holds anything but a part of this very store, or another process is packing into it."""
    try:
        there = read_description(store)
        if there is not None and there != description:
            what = another(there.source, description.source)
            if there.source == description.source:
                what = f"levels {','.join(map(str, there.levels))}"
            raise HeadraceError(f"{store} holds a store of {what}; give another folder, or remove this one")
        found = set(store.iterdir()) if store.exists() else set()
        if there is None and found - set(store.glob(atomic.TEMPORARY.format("*"))):
            raise HeadraceError(f"{store} is not empty and is no store; give a new folder")
        store.mkdir(parents=True, exist_ok=True)
        if there is None:
            _write_whole(store / NAME, [description.as_json().encode()])
        lock = open(store / NAME)  # noqa: SIM115  # for as long as the store is packed
    except OSError as e:
        raise HeadraceError(f"{store} cannot be written ({e.strerror}); give another folder for the store") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise HeadraceError(f"{store} is being packed by another process; wait for it, or give another folder") from e
        for partial in store.glob(atomic.TEMPORARY.format("*")):
            partial.unlink()
        yield


def _sorted_out(source: Checkpoint) -> tuple[dict[str, Entry], tuple[SourceTensor, ...]]:
    """The tensors of the checkpoint's files by name, without those of routed experts; and those."""
    resident: dict[str, Entry] = {}
    experts: dict[str, SourceTensor] = {}
    for name, entry in read_headers(source.files).items():
        if m := PER_EXPERT.match(name):
            name = f"{name[: m.start('expert')]}*{name[m.end('expert') :]}"
            count = max(int(m["expert"]) + 1, experts[name].experts if name in experts else 0)
            experts[name] = SourceTensor(name, entry.dtype, entry.shape, count)
        elif any(pattern.match(name) for pattern in EXPERT_NAMES):
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
def _full_disk_told(store: Path, description: Description, copied: int) -> Iterator[None]:
    """Turn an error of the disk into one line."""
    try:
        yield
    except OSError as e:
        again = "give the same command again, which goes on where it stopped"
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise HeadraceError(f"packing into {store} stopped ({e.strerror or e}); check the disks and {again}") from e
        left = [layer.file_bytes for layer in description.layers if not (store / layer.file).exists()]
        need = sum(left) + (0 if (store / INDEX).exists() else copied)
        raise HeadraceError(
            f"the disk of {store} is full, with {len(left)} of {len(description.layers)} layers to go; make room for "
            f"{need / GB:.4g} GB and {again}"
        ) from e


def _copy_rest(source: Checkpoint, store: Path, tensors: dict[str, Entry]) -> None:
    """Everything that is no expert, byte for byte: config, tokenizer, and the other tensors in shards with an index, which
    has the shards' checksums too and is written last."""
    if (store / INDEX).exists():
        return
    for file in sorted(source.path.iterdir()):
        if file.is_file() and file.suffix in COPIED and file.name not in (INDEX, NAME):
            _write_whole(store / file.name, [file.read_bytes()])
    shards: list[dict[str, Entry]] = [{}]
    for name, entry in sorted(tensors.items()):
        if shards[-1] and sum(e.nbytes for e in shards[-1].values()) + entry.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = entry
    index, checksums = {}, {}
    for number, shard in enumerate(shards, start=1):
        file = store / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        header, at = {}, 0
        for name, entry in shard.items():
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, at + entry.nbytes]}
            at += entry.nbytes
            index[name] = file.name
        encoded = json.dumps({"__metadata__": {"format": "mlx"}, **header}).encode()
        encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
        parts = _bytes_of(source.files, len(encoded).to_bytes(8, "little") + encoded, shard)
        checksums[file.name] = _write_whole(file, parts)
    size = sum(entry.nbytes for entry in tensors.values())
    content = {"metadata": {"total_size": size, CHECKSUMS: checksums}, "weight_map": index}
    _write_whole(store / INDEX, [json.dumps(content, indent=1).encode()])


def _bytes_of(files: tuple[Path, ...], header: bytes, tensors: dict[str, Entry]) -> Iterator[bytes | memoryview]:
    yield header
    for entry in tensors.values():
        with open(files[entry.file], "rb") as f:
            for at in range(0, entry.nbytes, COPY_BYTES):
                yield _read(f.fileno(), entry.offset + at, min(COPY_BYTES, entry.nbytes - at), files[entry.file]).data


def _write_whole(file: Path, parts: Iterable[bytes | memoryview]) -> int:
    """Write a file so that it has its name only when all of it is on the disk; returns its checksum."""
    checksum = 0
    with atomic.replacing(file) as partial, open(partial, "wb") as f:
        for part in parts:
            f.write(part)
            checksum = zlib.crc32(part, checksum)
    return checksum


def _pack_layer(
    source: Checkpoint, layer: SourceLayer, description: Description, number: int, store: Path, pool: ThreadPoolExecutor
) -> Iterator[int]:
    """Write one layer's file; yields the bytes of source as they are done."""
    target = description.layers[number]
    header = target.header(description.digest)
    errors = np.zeros((target.experts, len(target.projections), len(target.levels)))
    checksums = np.zeros((target.experts, len(target.sections) + 1), np.uint32)
    with contextlib.ExitStack() as stack:
        partial = stack.enter_context(atomic.replacing(store / target.file))
        numbers = sorted({int(n) for t in layer.layer.tensors for n in np.unique(t.file)})
        fds = {n: stack.enter_context(open(source.files[n], "rb")).fileno() for n in numbers}
        out = stack.enter_context(open(partial, "wb", buffering=0)).fileno()
        _reserve(out, target.file_bytes)
        _write_at(out, header, 0)

        def one(expert: int) -> int:
            def read(t: ExpertTensor) -> np.ndarray:
                shard = int(t.file[expert])
                return _read(fds[shard], int(t.offset[expert]), t.nbytes, source.files[shard])

            record, checksums[expert], errors[expert] = make_record(layer, target, read)
            _write_at(out, record.data, len(header) + expert * target.record_bytes)
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
        _write_at(out, errors.tobytes() + checksums.tobytes(), end)


def _reserve(fd: int, nbytes: int) -> None:
    """Take the disk's space before the work, where the file system can."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def _read(fd: int, offset: int, nbytes: int, file: Path) -> np.ndarray:
    out, done = np.empty(nbytes, np.uint8), 0
    while done < nbytes:
        try:
            count = os.preadv(fd, [out.data[done:]], offset + done)
        except OSError as e:
            raise CheckpointError(f"{file} cannot be read at byte {offset + done} ({e.strerror}); check its disk") from e
        if count == 0:
            raise CheckpointError(f"{file} ends at byte {offset + done}; copy it again")
        done += count
    return out


def _write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def make_record(
    layer: SourceLayer, target: Layer, read: Callable[[ExpertTensor], np.ndarray]
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """One expert's record (uint8 [record_bytes]), the checksums of its sections and then of its errors, and its squared
    error relative to the weights' squares (float64 [projections, levels]); `read` gives a tensor of it (uint8 [bytes])."""
    record = np.zeros(target.record_bytes, np.uint8)
    errors = np.zeros((len(target.projections), len(target.levels)))
    for number, projection in enumerate(target.projections):
        stored = {t.name: read(t) for t in layer.tensors(projection.name)}
        own = [s for s in target.sections if s.projection == projection.name]
        parts = {(s.tensor, s.level): record[s.offset : s.offset + s.nbytes] for s in own}
        bias = layer.bias(projection.name, stored)
        if bias is not None:
            parts["bias", 0][:] = bias
        rows = {key: part.reshape(projection.rows, -1) for key, part in parts.items()}
        step, energy = max(1, AT_ONCE // projection.columns), 0.0
        for begin in range(0, projection.rows, step):
            end = min(begin + step, projection.rows)
            numbers = layer.rows(projection.name, stored, begin, end)
            into = {key: part[begin:end] for key, part in rows.items()}
            try:
                squared_errors, squares = _nest(projection, target.levels, numbers, into)
            except FloatingPointError as e:
                raise CheckpointError(f"{target.block}.{projection.name}: {e}; copy the checkpoint again") from e
            errors[number] += squared_errors
            energy += squares
        errors[number] /= energy or 1.0
    checksums = [zlib.crc32(record[s.offset : s.offset + s.nbytes].data) for s in target.sections]
    return record, [*checksums, zlib.crc32(errors.tobytes())], errors


def _nest(
    projection: Projection, levels: tuple[int, ...], numbers: Codes | np.ndarray, into: dict[tuple[str, int], np.ndarray]
) -> tuple[list[float], float]:
    """Put scales, biases and codes of some rows of a projection at every level `into` the record (uint8 [rows, bytes]);
    returns the squared errors of the levels, and the weights' squares."""
    top, size, dtype = levels[-1], projection.group_size, projection.dtype
    if isinstance(numbers, Codes) and projection.exact:
        whole = _kept(projection, levels, numbers)
    else:
        whole = _chosen(projection, levels, numbers if isinstance(numbers, np.ndarray) else _weights(numbers, size))
    scale, bias = whole.scales.astype(np.float64), whole.biases.astype(np.float64)
    in_codes = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    errors = []
    for level, bits in enumerate(levels):
        scales, biases, squared = whole.scales, whole.biases, whole.errors
        if bits < top:
            sums = whole.sums[level]
            line = grids.fit(sums, size, (zero_code(bits), zero_code(top)) if projection.symmetric else None)
            scales = grids.to_dtype(scale * line.slope, dtype)
            if projection.symmetric:
                biases = scales * np.float32(-zero_code(bits))
            else:
                biases = grids.to_dtype(bias + scale * line.offset, dtype)
            squared = grids.error(sums, size, scales * in_codes, (biases - bias) * in_codes) * scale**2
        into["scales", level][:] = grids.to_bytes(scales, dtype).reshape(len(into["scales", level]), -1)
        if not projection.symmetric:
            into["biases", level][:] = grids.to_bytes(biases, dtype).reshape(len(into["biases", level]), -1)
        errors.append(float(squared.sum()))
    stream = whole.stream
    for level in range(len(levels) - 1, -1, -1):
        codes = into["codes", level]
        stream, lower = halve(stream, levels[level]) if level else (stream, stream)
        codes[:] = lower.reshape(codes.shape)
    first = whole.sums[0]
    energy = float((first.vv * scale**2 + 2 * first.v * scale * bias + size * bias**2).sum())
    if not np.isfinite(energy):
        raise FloatingPointError("scales or biases are not finite")
    return errors, energy


class _Whole(NamedTuple):
    """Some rows at the highest level."""

    scales: np.ndarray  # float32 [groups]
    biases: np.ndarray
    stream: np.ndarray  # of codes, uint8 [bytes]
    sums: list[grids.Sums]  # of the weights, in units of the codes, and the codes of each level below
    errors: np.ndarray  # squared, in units of the weights, [groups]


def _kept(projection: Projection, levels: tuple[int, ...], numbers: Codes) -> _Whole:
    """The source's own codes; where they have fewer bits than the highest level, with zeros below."""
    top, factor = levels[-1], 1 << (levels[-1] - numbers.bits)
    scales = numbers.scales / np.float32(factor)
    if factor > 1 and not np.array_equal(grids.to_dtype(scales, projection.dtype), scales):
        raise CheckpointError(
            f"{projection.name} has scales that {projection.dtype} cannot hold once they are divided by {factor}, so that "
            f"{numbers.bits} bits cannot be kept in {top}; convert the model to bfloat16 first"
        )
    stream, width = numbers.stream, 4
    codes = stream
    if numbers.bits != 4 or top != 4:
        codes, width = unpack(stream, numbers.bits) << np.uint8(top - numbers.bits), 8
        stream = stream if factor == 1 else pack(codes, top)
    sums = [grids.sums_of_codes(codes, width, top, bits, projection.group_size) for bits in levels[:-1]]
    return _Whole(scales, _biases(numbers), stream, sums, np.zeros(len(scales)))


def _chosen(projection: Projection, levels: tuple[int, ...], weights: np.ndarray) -> _Whole:
    """Codes for weights that are not quantized, or not in a way that can be kept."""
    top, weights = levels[-1], weights.reshape(-1, projection.group_size)
    codes, scales, biases, errors = grids.quantize(weights, top, levels[0], projection.dtype)
    values = np.subtract(weights, biases[:, None], out=grids.memory("at", weights.shape))
    values *= (1 / scales)[:, None]
    sums: list[grids.Sums] = []
    for bits in levels[:-1]:
        sums.append(grids.sums(values, grids.upper_bits(codes, top - bits), sums[0] if sums else None))
    return _Whole(scales, biases, pack(codes.astype(np.uint8).reshape(-1), top), sums, errors)


def _weights(numbers: Codes, size: int) -> np.ndarray:
    """Codes as float32 weights [groups, group_size]."""
    return unpack(numbers.stream, numbers.bits).reshape(-1, size) * numbers.scales[:, None] + _biases(numbers)[:, None]


def _biases(numbers: Codes) -> np.ndarray:
    return numbers.biases if numbers.biases is not None else numbers.scales * np.float32(-zero_code(numbers.bits))


def verify_store(path: str | Path, progress: Progress = lambda done, of: None) -> list[str]:
    """Read everything that was packed and compare its checksums; what is damaged, one line each."""
    store = Checkpoint.open(path)
    if store.levels is None:
        raise CheckpointError(f"{store.path} is no packed store and has no checksums; pack it first (python -m engine pack)")
    shards = _shard_checksums(store)
    of = store.expert_bytes + sum((store.path / name).stat().st_size for name in shards)
    bad, done = [], 0
    for name, packed in shards.items():
        with open(store.path / name, "rb") as f:
            checksum = 0
            while part := f.read(COPY_BYTES):
                checksum = zlib.crc32(part, checksum)
                done += len(part)
                progress(done, of)
        if checksum != packed:
            bad.append(f"{name}: what is not routed experts is damaged")
    for layer in store.layers:
        assert layer.records is not None
        with open(layer.records.file, "rb") as f, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for damage in pool.map(functools.partial(layer.records.damage, f.fileno()), range(layer.experts)):
                bad += damage
                done += layer.expert_bytes
                progress(done, of)
    return bad


def _shard_checksums(store: Checkpoint) -> dict[str, int]:
    """CRC-32 by file, of the resident tensors."""
    index = store.path / INDEX
    try:
        found: dict[str, int] = json.loads(index.read_text(encoding="utf-8"))["metadata"][CHECKSUMS]
        if set(found) != {file.name for file in store.path.glob("model*.safetensors")}:
            raise ValueError("of other files")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{index} has no checksums of the resident tensors ({first_line(e)}); copy it again, or pack the model again"
        ) from e
    return found
