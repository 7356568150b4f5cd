"""Files of a store: reads and writes byte ranges, and copies everything that is not a routed expert."""

from __future__ import annotations

import errno
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.files.headers import Entry
from engine.checkpoint.store.description import NAME
from engine.errors import CheckpointError
from engine.native import core
from engine.system import atomic
from engine.system.strict_json import to_json

INDEX = "model.safetensors.index.json"
CHECKSUMS = "crc32"  # key in the index: checksum by shard
COPIED = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".md")  # suffixes of the files copied to a store
SHARD_BYTES = 5_000_000_000
COPY_BYTES = 1 << 20
Progress = Callable[[int, int], None]  # called with the bytes done and the bytes in total


def copy_rest(source: Checkpoint, store: Path, tensors: dict[str, Entry]) -> None:
    """Copy everything but the experts: config, tokenizer, and the resident `tensors` in shards. The index, which also holds
    the shards' checksums, is written last; if it exists, there is nothing left to copy."""
    if (store / INDEX).exists():
        return
    for file in sorted(source.path.iterdir()):
        if file.is_file() and file.suffix in COPIED and file.name not in (INDEX, NAME):
            write_whole(store / file.name, [file.read_bytes()])
    shards: list[dict[str, Entry]] = [{}]
    for name, entry in sorted(tensors.items()):
        if shards[-1] and sum(e.nbytes for e in shards[-1].values()) + entry.nbytes > SHARD_BYTES:
            shards.append({})
        shards[-1][name] = entry
    write_shards(store, shards, functools.partial(_parts, source.files))


def write_shards(
    folder: Path, shards: list[dict[str, Entry]], parts_of: Callable[[str, Entry], Iterator[bytes | memoryview]]
) -> dict[str, int]:
    """Write tensors in shards, and then the index, which also holds the shards' checksums. `parts_of` gives a tensor's
    bytes. Returns the checksums by file."""
    index, checksums = {}, {}
    for file_name, shard in zip(shard_names(len(shards)), shards, strict=True):
        header, at = {}, 0
        for name, entry in shard.items():
            header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [at, at + entry.nbytes]}
            at += entry.nbytes
            index[name] = file_name
        encoded = to_json({"__metadata__": {"format": "mlx"}, **header}).encode()
        encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
        parts = itertools.chain.from_iterable(parts_of(name, entry) for name, entry in shard.items())
        whole = itertools.chain([len(encoded).to_bytes(8, "little") + encoded], parts)
        checksums[file_name] = write_whole(folder / file_name, whole)
    size = sum(entry.nbytes for shard in shards for entry in shard.values())
    content = {"metadata": {"total_size": size, CHECKSUMS: checksums}, "weight_map": index}
    write_whole(folder / INDEX, [to_json(content, indent=1).encode()])
    return checksums


def shard_names(count: int) -> list[str]:
    """The names of the shards of tensors that are not routed experts."""
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _parts(files: tuple[Path, ...], name: str, entry: Entry) -> Iterator[memoryview]:
    """The bytes of a tensor of a checkpoint, in parts of at most COPY_BYTES."""
    with open(files[entry.file], "rb") as f:
        for at in range(0, entry.nbytes, COPY_BYTES):
            yield read_range(f.fileno(), entry.offset + at, min(COPY_BYTES, entry.nbytes - at), files[entry.file]).data


def write_whole(file: Path, parts: Iterable[bytes | memoryview]) -> int:
    """Write a file atomically; returns its CRC-32."""
    checksum = 0
    with atomic.replacing(file) as partial, open(partial, "wb") as f:
        for part in parts:
            f.write(part)
            checksum = core.crc32(part, checksum)
    return checksum


def reserve(fd: int, nbytes: int) -> None:
    """Allocate the space on disk in advance, if the file system supports it."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise


def read_range(fd: int, offset: int, nbytes: int, file: Path) -> np.ndarray:
    """Bytes of `file`, uint8 [nbytes]. Raises `CheckpointError` if they cannot be read."""
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


def write_range(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count
