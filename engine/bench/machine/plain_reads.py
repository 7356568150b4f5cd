"""Plain reads: the ceiling of a disk, measured with reads of the same files into a few buffers."""

from __future__ import annotations

import functools
import mmap
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.disk.direct import open_file
from engine.knobs import GB, Knobs
from engine.system.page_cache import drop_cache

PLAIN_BLOCK = 8 << 20
PLAIN_MIB = 512  # read to measure the bandwidth


def plain_reads(
    files: tuple[Path, ...],
    knobs: Knobs,
    limit: int,
    first: int = 0,
    *,
    block_bytes: int = PLAIN_BLOCK,
    shuffled: int | None = None,
) -> int:
    """Read up to `limit` bytes of the files in blocks with `read_threads` threads, from block number `first` on, continuing
    at the start after the last. `shuffled`: in a random order of this seed. Returns the bytes read."""
    fds = [open_file(f, knobs.io_mode == "direct") for f in files]
    blocks = [(fd, at) for fd, f in zip(fds, files, strict=True) for at in range(0, f.stat().st_size, block_bytes)]
    if shuffled is not None:
        random.Random(shuffled).shuffle(blocks)
    first %= len(blocks)
    blocks = (blocks[first:] + blocks[:first])[: -(-limit // block_bytes)]
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
        nbytes = sum(pool.map(work, _plain_buffers(knobs.read_threads, block_bytes)))
    for fd in fds:
        os.close(fd)
    return nbytes


def plain_gbps(files: tuple[Path, ...], knobs: Knobs, nbytes: int = PLAIN_MIB << 20) -> float:
    """Bandwidth of plain reads of the files, GB/s, over `nbytes`: from the disk with `io_mode=direct`, otherwise as the page
    cache is."""
    if knobs.io_mode == "direct":
        drop_cache(files)
    _plain_buffers(knobs.read_threads, PLAIN_BLOCK)  # made outside of the clock
    begin = time.perf_counter()
    return plain_reads(files, knobs, nbytes) / (time.perf_counter() - begin) / GB


@functools.cache
def _plain_buffers(number: int, block_bytes: int) -> list[memoryview]:
    """Page-aligned memory, written once so that no read pays for the first use of a page."""
    buffers = [mmap.mmap(-1, block_bytes) for _ in range(number)]
    for buffer in buffers:
        buffer.write(bytes(block_bytes))
    return [memoryview(buffer) for buffer in buffers]
