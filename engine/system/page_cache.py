"""Page cache: measures how much of a checkpoint the system has cached, and empties or fills the cache.

A buffered read of a cached page costs a copy, and any other one a read from the disk: a cold or warm start changes the speed
of a run more than most knobs. Linux: mincore and posix_fadvise. macOS: mincore and msync (not yet run on a Mac).
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
SAMPLED_PAGES = 100_000  # of all files together
RUN_PAGES = 32  # neighbouring pages examined in one call
BLOCK = 8 << 20
STAYS = 0.05  # largest share of the files that may stay cached in a cold run


def prepare_page_cache(checkpoint: str | Path, state: str, io_mode: str = "buffered") -> str:
    """Prepare the page cache before a checkpoint is loaded: `cold` drops its files, `warm` reads them once, `as_is` does
    nothing. Returns the method: `posix_fadvise`, `msync`, `read through` or `as_is`.

    Raises `KnobError` for `warm` with direct reads, which bypass the cache, and `HeadraceError` if `cold` is not possible.
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
        why = f"{stays:.0%} of {checkpoint} stay cached" if stays > STAYS else "this system has no call for it"
        raise HeadraceError(
            f"page_cache=cold: the page cache cannot be emptied ({why}); end the processes that use the files, move the "
            "files to a disk, or set page_cache=as_is"
        )
    return how


def weight_files(checkpoint: str | Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint or store; without any, every file in its folder, or the path if it is a file."""
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return (path,)
    return tuple(sorted(path.glob("*.safetensors")) or sorted(file for file in path.rglob("*") if file.is_file()))


def cached_share(files: Iterable[Path], libc: Any = None) -> float | None:
    """Share of the files' pages that are in the page cache, from all pages or from about SAMPLED_PAGES evenly chosen ones.

    None without mincore, without files, and for files that this user neither owns nor may write, for which Linux reports all
    pages as cached.
    """
    files = [file for file in files if file.is_file() and file.stat().st_size]
    libc = libc or (ctypes.CDLL(None) if sys.platform in ("linux", "darwin") else None)
    if not files or not hasattr(libc, "mincore") or not all(_is_reported(file) for file in files):
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


def _is_reported(file: Path) -> bool:
    return file.stat().st_uid == os.geteuid() or os.access(file, os.W_OK)


def _pages(file: Path) -> int:
    return -(-file.stat().st_size // mmap.PAGESIZE)


def _resident(file: Path, libc: Any, step: int) -> np.ndarray | None:
    """Whether the first RUN_PAGES of every `step` pages are cached, bool [pages]; all pages if `step` is RUN_PAGES."""
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
    """Read every byte once through the page cache, which keeps what fits."""
    buffer = bytearray(BLOCK)
    for file in files:
        with open(file, "rb", buffering=0) as f:
            while f.readinto(buffer):
                pass


def drop_cache(files: Iterable[Path], libc: Any = None) -> str:
    """Drop the files' pages from the page cache, so that the next reads come from the disk. Dirty pages are written back
    first; pages that another process has mapped stay. Returns the method, or `not possible`.

    Linux: posix_fadvise. macOS has no such call; there msync invalidates a shared mapping of the file, as its manual
    describes.
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
