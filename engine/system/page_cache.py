"""The system's page cache: how much of a checkpoint it holds, and how to have it hold none or all of it.

A buffered read of a cached page costs a copy, of another one a read from the disk: whether a run began cold or warm moves
its speed more than most knobs. Linux is asked with mincore and told with posix_fadvise, macOS with mincore and msync (not
yet run on a Mac).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import HeadraceError, KnobError

MS_INVALIDATE = 2  # macOS, <sys/mman.h>
SAMPLED_PAGES = 100_000  # looked at, of all files together
RUN_PAGES = 32  # looked at side by side: one call
BLOCK = 8 << 20
STAYS = 0.05  # share of the files that may stay cached in a run that is called cold


def prepare_page_cache(checkpoint: str | Path, state: str, io_mode: str = "buffered") -> str:
    """Bring a checkpoint's files into a state of the page cache before it is loaded: `cold`, they are dropped from it;
    `warm`, they are read through once; `as_is`. Returns how it was done: `posix_fadvise`, `msync`, `read through`, `as_is`.

    Raises `KnobError` for `warm` with direct reads, which go past the cache, `HeadraceError` if `cold` is not possible here.
    """
    if state == "as_is":
        return state
    files = weight_files(checkpoint)
    if state == "warm":
        if io_mode == "direct":
            raise KnobError(
                "page_cache=warm has no effect with io_mode=direct, which reads past the page cache; "
                "set page_cache=cold or as_is, or io_mode=buffered"
            )
        read_through(files)
        return "read through"
    how = drop_cache(files)
    stays = cached_share(files) or 0.0
    if how == "not possible" or stays > STAYS:
        why = f"{stays:.0%} of {checkpoint} stay in it" if stays > STAYS else "this system has no call for it"
        raise HeadraceError(
            f"page_cache=cold: the page cache cannot be emptied ({why}); end what uses the files, move them to a disk, "
            "or set page_cache=as_is"
        )
    return how


def weight_files(checkpoint: str | Path) -> tuple[Path, ...]:
    """A checkpoint's safetensors files, a store's among them; if there are none, every file in its folder, or itself."""
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return (path,)
    return tuple(sorted(path.glob("*.safetensors")) or sorted(file for file in path.rglob("*") if file.is_file()))


def cached_share(files: Iterable[Path], libc: Any = None) -> float | None:
    """Share of the files' pages that are in the page cache: of all, or of about SAMPLED_PAGES evenly chosen ones.

    None where the system does not say: without mincore, without files, or of files that are neither this user's nor
    writable, all of whose pages Linux calls cached.
    """
    files = [file for file in files if file.is_file() and file.stat().st_size]
    libc = libc or (ctypes.CDLL(None) if sys.platform in ("linux", "darwin") else None)
    if not files or not hasattr(libc, "mincore") or not all(_tells(file) for file in files):
        return None
    pages = sum(_pages(file) for file in files)
    step = max(1, round(pages / SAMPLED_PAGES)) * RUN_PAGES
    seen = cached = 0
    for file in files:
        found = _resident(file, libc, step)
        if found is None:
            return None
        seen, cached = seen + len(found), cached + int(found.sum())
    return cached / seen


def _tells(file: Path) -> bool:
    return file.stat().st_uid == os.geteuid() or os.access(file, os.W_OK)


def _pages(file: Path) -> int:
    return -(-file.stat().st_size // mmap.PAGESIZE)


def _resident(file: Path, libc: Any, step: int) -> np.ndarray | None:
    """Of the first RUN_PAGES of every `step` pages, or of all if they are the same, whether they are cached: bool."""
    pages = _pages(file)
    with _mapped(file) as address:
        runs = [(0, pages)] if step == RUN_PAGES else [(at, min(RUN_PAGES, pages - at)) for at in range(0, pages, step)]
        found = np.zeros(sum(count for _, count in runs), np.uint8)
        into = found.ctypes.data
        for at, count in runs:
            start, size = ctypes.c_void_p(address + at * mmap.PAGESIZE), ctypes.c_size_t(count * mmap.PAGESIZE)
            if libc.mincore(start, size, ctypes.c_void_p(into)) != 0:
                return None
            into += count
    return (found & 1).astype(bool)


def read_through(files: Iterable[Path]) -> None:
    """Read every byte once, past nothing: what fits stays in the page cache."""
    buffer = bytearray(BLOCK)
    for file in files:
        with open(file, "rb", buffering=0) as f:
            while f.readinto(buffer):
                pass


def drop_cache(files: Iterable[Path], libc: Any = None) -> str:
    """Have the system forget the files' pages, so that the next reads come from the disk. Pages that were not yet written
    back are written first; those that another process has mapped stay. Returns how it was done, or `not possible`.

    Linux: posix_fadvise. macOS has no such call: there a shared mapping of the file is invalidated with msync, as its
    manual says.
    """
    if sys.platform == "darwin":
        libc = libc or ctypes.CDLL(None)
        return "msync" if all(_invalidate(file, libc) for file in files) else "not possible"
    if not hasattr(os, "posix_fadvise"):
        return "not possible"
    for file in files:
        fd = os.open(file, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a read-only file system has nothing to write back
            os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return "posix_fadvise"


def _invalidate(file: Path, libc: Any) -> bool:
    size = file.stat().st_size
    if size == 0:  # cannot be mapped
        return True
    with _mapped(file) as address:
        return bool(libc.msync(ctypes.c_void_p(address), ctypes.c_size_t(size), MS_INVALIDATE) == 0)


@contextlib.contextmanager
def _mapped(file: Path) -> Iterator[int]:
    """The address of a shared mapping of the whole file."""
    with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        yield np.frombuffer(pages, np.uint8).ctypes.data
