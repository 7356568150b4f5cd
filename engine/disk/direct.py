"""Direct reads: opens files, past the page cache if required, and reads into aligned memory.

On Linux direct means O_DIRECT, whose reads start and end at multiples of 4 KiB and need aligned memory. On macOS it means
F_NOCACHE (written from the documented interface, not yet run on a Mac).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
from pathlib import Path

from engine.errors import KnobError, ReadError

from .load import Block

ALIGNMENT = 4096
F_NOCACHE = 48  # macOS, <sys/fcntl.h>; Python does not define it on Linux
AT_EMPTY_PATH, STATX_DIOALIGN = 0x1000, 0x2000  # Linux, <linux/stat.h>
DIO_MEM_ALIGN = 0x98  # offset of stx_dio_mem_align in struct statx


def lay_out(
    block: Block, begin: int, scratch: memoryview, alignment: int, memory: int
) -> tuple[list[memoryview], list[tuple[memoryview, memoryview]]]:
    """The destinations of a read of `len(scratch)` bytes at the file offset `begin`, and the copies (to, from) after it.

    Whole units of `alignment` bytes of the file go straight to their place if its address is a multiple of `memory` (0:
    never); all other bytes go to `scratch` and are copied."""
    views, rest = [], []
    done, at = 0, block.offset - begin
    for into in block.into:
        first, last = -(-at // alignment) * alignment, (at + len(into)) // alignment * alignment
        if memory and first < last and (memory == 1 or (address(into) + first - at) % memory == 0):
            views += [scratch[done:first], into[first - at : last - at]]
            rest += [(into[: first - at], scratch[at:first]), (into[last - at :], scratch[last : at + len(into)])]
            done = last
        else:
            rest.append((into, scratch[at : at + len(into)]))
        at += len(into)
    views.append(scratch[done:])
    return [v for v in views if len(v)], [(into, source) for into, source in rest if len(into)]


def read_fully(fd: int, into: list[memoryview], offset: int, needed: int, alignment: int) -> None:
    """Call preadv until `needed` bytes are read. A short read continues where it stopped, in units of `alignment`; a read
    that a signal interrupted is repeated."""
    done = 0
    while done < needed:
        try:
            count = os.preadv(fd, into, offset + done)
        except InterruptedError:
            continue
        if done + count < needed:
            count -= count % alignment
            into = _skip(into, count)
        if count == 0:
            raise OSError(errno.EIO, "unexpected end of file")
        done += count


def _skip(into: list[memoryview], count: int) -> list[memoryview]:
    rest = []
    for view in into:
        dropped = min(count, len(view))
        count -= dropped
        if dropped < len(view):
            rest.append(view[dropped:])
    return rest


def address(view: memoryview) -> int:
    """The address of writable memory."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


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


def _not_direct(file: Path, reason: str) -> KnobError:
    return KnobError(f"io_mode=direct is not possible for {file} ({reason}); use io_mode=buffered")


def memory_alignment(fd: int, file: Path) -> int:
    """Alignment in memory of a direct read, bytes; a page if the system does not report it (Linux before 6.1)."""
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
