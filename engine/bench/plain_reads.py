"""Plain reads: the ceiling of a disk, measured with large reads of the same files."""

from __future__ import annotations

import functools
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.disk.direct import open_file
from engine.knobs import Knobs

PLAIN_BLOCK = 8 << 20


def plain_reads(files: tuple[Path, ...], knobs: Knobs, limit: int, first: int = 0) -> int:
    """Read up to `limit` bytes of the files in 8 MiB blocks with `read_threads` threads, from block number `first` on,
    continuing at the start after the last. Returns the bytes read."""
    fds = [open_file(f, knobs.io_mode == "direct") for f in files]
    blocks = [(fd, at) for fd, f in zip(fds, files, strict=True) for at in range(0, f.stat().st_size, PLAIN_BLOCK)]
    first %= len(blocks)
    blocks = (blocks[first:] + blocks[:first])[: -(-limit // PLAIN_BLOCK)]
    todo, lock = iter(blocks), threading.Lock()

    def work(buffer: memoryview) -> int:
        done = 0
        while True:
            with lock:
                block = next(todo, None)
            if block is None:
                return done
            done += os.preadv(block[0], [buffer], block[1])

    with ThreadPoolExecutor(knobs.read_threads) as pool:
        nbytes = sum(pool.map(work, _plain_buffers(knobs.read_threads)))
    for fd in fds:
        os.close(fd)
    return nbytes


@functools.cache
def _plain_buffers(number: int) -> list[memoryview]:
    """Page-aligned memory, written once so that no read pays for the first use of a page."""
    buffers = [mmap.mmap(-1, PLAIN_BLOCK) for _ in range(number)]
    for buffer in buffers:
        buffer.write(bytes(PLAIN_BLOCK))
    return [memoryview(buffer) for buffer in buffers]
