"""Prefix file: the KV cache of one prompt prefix in mlx-lm's prompt cache format, with its tokens in the metadata.

The name consists of the key of model and setting, a digest of the tokens, and the CRC-32 of the content. So files of other
models are recognized without being opened, and an index of all prefixes needs only the headers. The header repeats the key,
so that a file that was renamed is recognized as well. `mlx_lm` can load the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import cache as caches
from mlx_lm.models.cache import load_prompt_cache, save_prompt_cache

from engine.errors import HeadraceError, first_line
from engine.generation.trimming import trimmable
from engine.native import core
from engine.system.atomic import commit
from engine.system.strict_json import from_json

SUFFIX = ".prefix.safetensors"
NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})" + re.escape(SUFFIX))
TEMPORARY = ".prefix-", ".tmp.safetensors"  # start and end of a temporary file's name; MLX needs this suffix
BLOCK = 4 << 20
LONGEST_HEADER = 64 << 20


class PrefixError(HeadraceError):
    """A prefix file that cannot be used; the message names the file and the cause."""


@dataclass(frozen=True, eq=False)
class PrefixFile:
    """A prefix file and what its header says. `tokens` is int64 [tokens]."""

    path: Path
    tokens: np.ndarray
    trimmable: bool
    kind: str
    nbytes: int


def key_of(name: str) -> str | None:
    """The key in a file's name; None for the name of another file."""
    match = NAME.fullmatch(name)
    return match[1] if match else None


def unsaveable(cache: list[Any]) -> str | None:
    """The class of the first cache that mlx-lm's format cannot restore completely; None if it can restore all."""
    for layer in cache:
        kind = type(layer)
        if getattr(caches, kind.__name__, None) is not kind:
            return kind.__name__
        if isinstance(layer, caches.CacheList):
            inner = unsaveable(list(layer.caches))
            if inner:
                return inner
        elif vars(kind.from_state(layer.state)).keys() != vars(layer).keys():
            return kind.__name__
    return None


def write_prefix(folder: Path, key: str, tokens: np.ndarray, cache: list[Any], kind: str) -> PrefixFile:
    """Write a prefix atomically, readable by its owner only. Raises `OSError`, and `RuntimeError` if MLX cannot write."""
    can_cut = trimmable(cache)
    words = " ".join(map(str, tokens.tolist()))
    metadata = {"key": key, "kind": kind, "trimmable": "yes" if can_cut else "no", "tokens": words}
    handle, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY[0], suffix=TEMPORARY[1])  # has mode 0600
    partial = Path(name)
    try:
        with contextlib.suppress(OSError):  # a filesystem without locks
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        save_prompt_cache(name, cache, metadata)
        _, size = _header(partial)
        if size != partial.stat().st_size:
            raise OSError(f"{partial.stat().st_size} of {size} bytes were written")
        path = folder / f"{key}-{digest_of(tokens)}-{_checksum(partial):08x}{SUFFIX}"
        commit(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return PrefixFile(path, tokens, can_cut, kind, size)


def is_abandoned(partial: Path) -> bool:
    """Whether no process writes a temporary file any more: its lock, which ends with its process, is free. Without locks on
    its filesystem the file is taken for one in use. Raises `OSError` for a file that is gone."""
    handle = os.open(partial, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def read_header(path: Path) -> PrefixFile:
    """Read what an index needs, without the arrays. Raises `PrefixError` for a damaged file, `OSError` for a missing one."""
    try:
        entries, size = _header(path)
        found = entries["__metadata__"]
        tokens = np.array(found["0.tokens"].split(), dtype=np.int64)
        can_cut, kind, key = found["0.trimmable"] == "yes", str(found["0.kind"]), found["0.key"]
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise PrefixError(f"{path.name} is damaged ({first_line(e)})") from e
    match = NAME.fullmatch(path.name)
    if match is None or (match[1], match[2]) != (key, digest_of(tokens)) or size != path.stat().st_size:
        raise PrefixError(f"{path.name} is damaged (its header does not belong to its name or size)")
    return PrefixFile(path, tokens, can_cut, kind, size)


def load_prefix(file: PrefixFile) -> list[Any]:
    """Read and evaluate a prefix's cache. Raises `PrefixError` for a damaged file, `OSError` for a missing one."""
    match = NAME.fullmatch(file.path.name)
    if match is None or int(match[3], 16) != _checksum(file.path):
        raise PrefixError(f"{file.path.name} is damaged (checksum)")
    try:
        cache: list[Any] = load_prompt_cache(str(file.path))
        mx.eval([c.state for c in cache])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise PrefixError(f"{file.path.name} cannot be loaded ({first_line(e)})") from e
    return cache


def digest_of(tokens: np.ndarray) -> str:
    """16 hexadecimal digits of tokens, part of their file's name."""
    return hashlib.sha256(tokens.astype("<i8").tobytes()).hexdigest()[:16]


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            value = core.crc32(block, value)
    return value


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors header and the size that the file must have. Raises `ValueError` if it is no header."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        entries: dict[str, Any] = from_json(stream.read(length))
    ends = [int(v["data_offsets"][1]) for k, v in entries.items() if k != "__metadata__"]
    return entries, 8 + length + max(ends, default=0)
