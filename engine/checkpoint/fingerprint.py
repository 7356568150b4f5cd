"""Fingerprint: identifies a model, wherever its folder is, by a digest of configuration, tokenizer and weights.

It covers config.json, the tokenizer's files, name, type and shape of every tensor in every shard (multi-token prediction
and vision too), a packed store's description, and the tensors' bytes: all of them up to `WHOLE` bytes in total. A larger
checkpoint is sampled in blocks of `BLOCK` bytes: at both ends of every tensor, or of every expert's part of a stacked one,
and at equal distances between them, at most a stride apart (256 KiB; in checkpoints above 34 GB their size over 2^17).
Tensors up to 1 MiB are hashed whole, and those of routed experts up to 16 KiB. The sample misses changes between its blocks,
such as single weights or a few rows of a large matrix. It detects any change of a whole tensor or expert, as training,
merging, pruning and quantization make. It does not protect against forgery.

Names, dates and folders of the files do not matter, nor does the distribution of tensors over shards. Kimi K2.5 (208,215
tensors) takes 210,000 reads, 16 at a time.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.errors import CheckpointError

from .files.headers import Entry

DEFINITION = 2  # prefix of a fingerprint; definition 1 had no prefix and sampled three places per file
DIGITS = 16
WHOLE = 256 << 20
BLOCK = 2048
MIB = 1 << 20
LEAST_STRIDE, STRIDES = 256 << 10, 1 << 17  # bytes between blocks; most strides over the whole checkpoint
SMALL, SMALL_EXPERT = MIB, 16 << 10  # tensors up to this size are hashed whole; experts are the most numerous
THREADS = 16
GROUP = 512  # blocks per task of a thread
EXPERTS = re.compile(r"\.(?:experts|switch_mlp|switch_glu|block_sparse_moe)\.(?P<one>\d+\.)?")
TOKENIZER = ("tokenizer*", "tokenization*.py", "*.model", "*.tiktoken", "vocab.*", "merges.txt", "added_tokens.json",
             "special_tokens_map.json")  # fmt: skip
State = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Blocks:
    """The byte ranges to hash, as arrays [blocks] in the order of the tensors' names, and a digest of the tensors' names,
    types and shapes."""

    file: np.ndarray  # int32
    offset: np.ndarray  # int64
    nbytes: np.ndarray  # int32
    tensors: str


def blocks_of(tensors: Mapping[str, Entry]) -> Blocks:
    """The blocks to hash. Their positions within a tensor depend on its size alone."""
    total = sum(entry.nbytes for entry in tensors.values())
    stride = 0 if total <= WHOLE else max(LEAST_STRIDE, total // STRIDES)
    offset, nbytes = array("q"), array("i")
    files, counts = array("i"), array("q")
    digest = hashlib.sha256()
    for name in sorted(tensors):
        entry = tensors[name]
        digest.update(f"{name} {entry.dtype} {entry.shape}\n".encode())
        experts = EXPERTS.search(name)
        parts = entry.shape[0] if experts and not experts["one"] and len(entry.shape) > 1 else 1
        size = entry.nbytes // (parts or 1)
        places, sizes = _places(size, stride, SMALL_EXPERT if experts else SMALL)
        for start in range(entry.offset, entry.offset + parts * size, size or 1):
            offset.extend([start + at for at in places])
            nbytes.extend(sizes)
        files.append(entry.file)
        counts.append(parts * len(places))
    file = np.repeat(np.array(files, np.int32), np.array(counts, np.int64))
    return Blocks(file, np.array(offset, np.int64), np.array(nbytes, np.int32), digest.hexdigest())


@functools.cache
def _places(nbytes: int, stride: int, small: int) -> tuple[list[int], array[int]]:
    """Offsets and lengths of the blocks in a part of `nbytes` bytes; stride 0 covers all of it."""
    if not stride or nbytes <= small:
        places = list(range(0, nbytes, MIB))
        return places, array("i", [min(MIB, nbytes - at) for at in places])
    gaps = 1 + nbytes // stride
    return [(nbytes - BLOCK) * i // gaps for i in range(gaps + 1)], array("i", [BLOCK] * (gaps + 1))


_known: dict[tuple[str, State], str] = {}  # results of this process; a study needs one before each setting


def fingerprint(path: Path, description: str, files: Sequence[Path], blocks: Blocks) -> str:
    """The fingerprint: `2-` and 16 hexadecimal digits. `description` is a digest of the headers' content. Raises
    `CheckpointError` for a file that cannot be read."""
    tokenizer = _tokenizer(path)
    try:
        key = description, state_of([*files, *tokenizer])
        if key not in _known:
            digest = hashlib.sha256(description.encode())
            for file in tokenizer:
                digest.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
            for part in _hashed(files, blocks):
                digest.update(part)
            _known[key] = f"{DEFINITION}-{digest.hexdigest()[:DIGITS]}"
        return _known[key]
    except OSError as e:
        raise CheckpointError(f"{e.filename or path} cannot be read ({e.strerror or e}); copy it again") from e


def learn(value: str, path: Path, description: str, files: Sequence[Path]) -> None:
    """Take `value` as the fingerprint of these files in their present state; another process has computed it. Raises
    `OSError`."""
    _known[description, state_of([*files, *_tokenizer(path)])] = value


def _tokenizer(path: Path) -> list[Path]:
    return sorted({file for pattern in TOKENIZER for file in path.glob(pattern) if file.is_file()})


def state_of(files: Iterable[Path]) -> State:
    """Values that change whenever a file does: device, inode, size and times of change (ns). Raises `OSError`."""
    stats = [os.stat(file) for file in files]
    return tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)


def folder_state(path: Path) -> State:
    """The state of a checkpoint: of the file, or of all files in the folder. Raises `OSError`."""
    return state_of(sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path])


def another(old: str | None, new: str | None) -> str:
    """The phrase for two different fingerprints. With different definitions they do not prove that the models differ."""
    definitions = {_definition(old), _definition(new)}
    if len(definitions) == 1 or None in definitions:
        return "another model"
    return "a model with a fingerprint of an older version, which did not cover every tensor"


def _definition(value: str | None) -> str | None:
    """The definition of a fingerprint; None for a fingerprint from another engine."""
    known = re.fullmatch(rf"(?:(\d+)-)?[0-9a-f]{{{DIGITS}}}", value or "")
    return (known[1] or "1") if known else None


def _hashed(files: Sequence[Path], blocks: Blocks) -> list[bytes]:
    """The SHA-256 of every block, read file by file in the order of their offsets."""
    order = np.lexsort((blocks.offset, blocks.file))
    found = [b""] * len(order)
    ends = np.flatnonzero(np.diff(blocks.file[order])) + 1
    groups = [part[i : i + GROUP] for part in np.split(order, ends) for i in range(0, len(part), GROUP)]

    def take(group: np.ndarray) -> None:
        file = files[blocks.file[group[0]]]
        fd = os.open(file, os.O_RDONLY)
        try:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no readahead
            ranges = zip(group.tolist(), blocks.offset[group].tolist(), blocks.nbytes[group].tolist(), strict=True)
            for begin, end, run in _runs(ranges):
                data = memoryview(os.pread(fd, end - begin, begin))
                if len(data) != end - begin:
                    raise CheckpointError(f"{file} was cut short while it was read; copy it again")
                for number, offset, nbytes in run:
                    found[number] = hashlib.sha256(data[offset - begin : offset - begin + nbytes]).digest()
        finally:
            os.close(fd)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(take, groups))
    return found


def _runs(ranges: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, list[tuple[int, int, int]]]]:
    """Join ranges (number, offset, length), ordered by offset, that touch or overlap, up to 1 MiB per run."""
    run: list[tuple[int, int, int]] = []
    begin = end = 0
    for one in ranges:
        if run and (one[1] > end or one[1] + one[2] - begin > MIB):
            yield begin, end, run
            run = []
        begin = begin if run else one[1]
        end = max(end, one[1] + one[2]) if run else one[1] + one[2]
        run.append(one)
    if run:
        yield begin, end, run
