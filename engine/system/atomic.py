"""Atomic writes: a file appears under its name complete, or the previous file stays.

The content goes to a temporary file in the same folder, `.NAME.tmp`, which is then renamed. A durable write waits until the
disk holds both the content and the rename, so that a power cut leaves one version or the other; this costs two fsync calls.
A write that fails removes its temporary file, so that a full disk is not left fuller. A killed process leaves the temporary
file; the next write of the same file replaces it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .strict_json import to_json

TEMPORARY = ".{}.tmp"  # pattern of a temporary file's name, by the file's name
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def temporary(path: Path) -> Path:
    """The temporary file of `path`."""
    return path.with_name(TEMPORARY.format(path.name))


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True, concurrent: bool = False) -> Iterator[Path]:
    """Yield the path of a temporary file to write; when the block ends without an error, the file is renamed to `path`.

    `durable`: wait until content and rename are on the disk. `concurrent`: several processes may write the same file at
    once, so each has a temporary file with its process id in the name. Raises `OSError` if the file cannot be written.
    """
    partial = temporary(path)
    if concurrent:
        partial = partial.with_suffix(f".{os.getpid()}.tmp")
    try:
        yield partial
        commit(partial, path, durable=durable)
    except Exception:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def commit(partial: Path, path: Path, *, durable: bool = True) -> None:
    """Rename a complete temporary file to `path` in the same folder. Raises `OSError`."""
    if durable:
        with open(partial, "rb+") as written:
            os.fsync(written.fileno())
    os.replace(partial, path)
    if durable:
        sync_folder(path.parent)


def write_bytes(path: Path, content: bytes, *, durable: bool = True, concurrent: bool = False) -> None:
    """Write a file atomically. Raises `OSError`."""
    with replacing(path, durable=durable, concurrent=concurrent) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str, *, durable: bool = True, concurrent: bool = False) -> None:
    """Write a UTF-8 file atomically. Raises `OSError`."""
    write_bytes(path, content.encode(), durable=durable, concurrent=concurrent)


def write_json(path: Path, content: Mapping[str, Any], *, durable: bool = True, concurrent: bool = False) -> None:
    """Write a JSON file atomically. Raises `OSError`."""
    write_text(path, to_json(content, indent=2), durable=durable, concurrent=concurrent)


def sync_folder(folder: Path) -> None:
    """Wait until the renames in `folder` are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def cannot_write(path: Path, e: OSError, remedy: str = "") -> str:
    """The one-line message for a file that could not be written. Without `remedy`, it follows from the kind of error."""
    remedy = remedy or ("make room" if e.errno in DISK_FULL else "make its folder writable")
    return f"{path} cannot be written ({e.strerror or e}); {remedy}"
