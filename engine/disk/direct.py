"""Direct reads: opens files, past the page cache if required, and says how their reads must be aligned.

On Linux direct means O_DIRECT, whose reads start and end at multiples of 4 KiB and need aligned memory.

On macOS it means F_NOCACHE, which never refuses a read: one that does not fit goes through the page cache instead. By XNU's
source (bsd/vfs/vfs_cluster.c) a read fits if its place in the file and in memory are aligned and its length is whole pages,
16 KiB on Apple silicon, and each destination of a call is judged alone. So reads are whole pages there, with one destination
a call. Not yet run on a Mac; `engine.measure.read_source` compares the bytes with what the disk delivered.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

from engine.errors import KnobError, ReadError

ALIGNMENT = 4096  # of direct reads, bytes; on macOS a page if that is more (see `direct_unit`)
SEPARATE_BYTES = 1 << 20  # a destination of its own costs a call: smaller parts are copied (an estimate, not measured)
UF_COMPRESSED = 0x20  # macOS, <sys/stat.h>: APFS decompresses the file through the page cache
F_NOCACHE = 48  # macOS, <sys/fcntl.h>; Python does not define it on Linux
AT_EMPTY_PATH, STATX_DIOALIGN = 0x1000, 0x2000  # Linux, <linux/stat.h>
DIO_MEM_ALIGN = 0x98  # offset of stx_dio_mem_align in struct statx


def direct_unit(platform: str = sys.platform, page: int = mmap.PAGESIZE) -> int:
    """The unit of direct reads in the file, bytes: a page on macOS (16 KiB on Apple silicon), 4 KiB on Linux."""
    return max(ALIGNMENT, page) if platform == "darwin" else ALIGNMENT


def compressed_files(files: Iterable[Path]) -> list[Path]:
    """The files that APFS keeps compressed, which no direct read can bypass the page cache for; none on other systems."""
    return [file for file in files if getattr(file.stat(), "st_flags", 0) & UF_COMPRESSED]


def open_file(file: Path, direct: bool) -> int:
    """A file descriptor for reading, past the page cache if `direct`. Raises `KnobError`, `ReadError`."""
    flags = os.O_RDONLY | (os.O_DIRECT if direct and sys.platform != "darwin" else 0)
    try:
        fd = os.open(file, flags)
    except OSError as e:
        if direct and e.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            raise _not_direct(file, str(e.strerror)) from e
        raise ReadError(f"{file} cannot be opened ({e.strerror}); check that it exists and is readable") from e
    if direct and sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, F_NOCACHE, 1)
        except OSError as e:
            os.close(fd)
            raise _not_direct(file, str(e.strerror)) from e
    return fd


def not_direct(file: Path) -> str:
    """Why direct reads of a file are not possible, in one line; empty if they are."""
    fd = None
    try:
        fd = open_file(file, direct=True)
        memory_alignment(fd, file)
    except (KnobError, ReadError) as e:
        return str(e).partition("; use")[0]
    finally:
        if fd is not None:
            os.close(fd)
    return ""


def _not_direct(file: Path, reason: str) -> KnobError:
    return KnobError(f"io_mode=direct is not possible for {file} ({reason}); use io_mode=buffered")


def memory_alignment(fd: int, file: Path) -> int:
    """Alignment in memory of a direct read, bytes; a page on macOS and if Linux does not report it (before 6.1)."""
    if sys.platform == "darwin":
        return direct_unit()
    statx = getattr(ctypes.CDLL(None), "statx", None)
    reported = ctypes.create_string_buffer(256)
    if statx is None or statx(fd, b"", AT_EMPTY_PATH, STATX_DIOALIGN, reported) != 0:
        return ALIGNMENT
    (mask,), (alignment,) = struct.unpack_from("I", reported), struct.unpack_from("I", reported, DIO_MEM_ALIGN)
    if not mask & STATX_DIOALIGN:
        return ALIGNMENT
    if alignment == 0:
        raise _not_direct(file, "its file system reads it through the page cache")
    return int(alignment)
