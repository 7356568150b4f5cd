"""Disk: the bandwidth of random reads in three block sizes, buffered and direct, of a file of random bytes.

The file is written first, for WRITE_S seconds at most. Before each pass the page cache is emptied; the share of the bytes
that then came from the disk is measured, so that a read from a cache is not taken for a read from the disk.
"""

from __future__ import annotations

import os
import shutil
import time

import numpy as np

from engine.bench.machine.plain_reads import plain_reads
from engine.knobs import GB, Knobs
from engine.system.memory import disk_bytes_read
from engine.system.page_cache import cached_share, drop_cache

from .check import Answer, Check, Place

BLOCKS_KIB = (64, 1024, 8192)
THREADS = 8
MOST_BYTES = 2 << 30
LEAST_BYTES = 64 << 20
FREE_SHARE = 0.25  # of the free space that the file may take
CHUNK = 32 << 20  # written or read between two looks at the clock
WRITE_S, READ_S = 6.0, 1.5
DIRECT_SHARE = 0.9  # of the bytes that come from the disk if direct reads are direct
DIRECT_TEXT = {True: ", direct", False: ", NOT direct: through the page cache", None: ", not known whether direct"}


def checks() -> list[Check]:
    """The checks of the group disk, in their order: the first one writes the file."""
    found = [Check("disk", "writing", _write, "The bandwidth of this disk is not measured.", WRITE_S + 10)]
    for io_mode in ("buffered", "direct"):
        for block_kib in BLOCKS_KIB:
            found.append(_read_check(io_mode, block_kib))
    return found


def _write(place: Place) -> Answer:
    most = min(MOST_BYTES, int(shutil.disk_usage(place.folder).free * FREE_SHARE)) // CHUNK * CHUNK
    if most < LEAST_BYTES:
        raise OSError(f"only {most / GB:.3g} GB could be used on this disk; name a folder on another one with --folder")
    rng, written, begin = np.random.default_rng(), 0, time.perf_counter()
    with open(place.file, "wb", buffering=0) as f:
        while written < most and (written < LEAST_BYTES or time.perf_counter() - begin < WRITE_S):
            f.write(rng.bytes(CHUNK))
            written += CHUNK
            os.fdatasync(f.fileno()) if hasattr(os, "fdatasync") else os.fsync(f.fileno())
    gbps = written / (time.perf_counter() - begin) / GB
    return Answer(f"{gbps:.2f} GB/s with fsync, {written / GB:.3g} GB", {"write_gbps": gbps, "written_gb": written / GB})


def _read_check(io_mode: str, block_kib: int) -> Check:
    def run(place: Place) -> Answer:
        return _read(place, io_mode, block_kib)

    title = f"{io_mode}, blocks of {block_kib} KiB"
    without = "io_mode=direct is refused for files on this disk." if io_mode == "direct" else ""
    return Check("disk", title, run, without, READ_S + 10)


def _read(place: Place, io_mode: str, block_kib: int) -> Answer:
    """Random reads for READ_S seconds, each block once a pass."""
    if not place.file.exists():
        raise OSError("there is no file to read, for it could not be written")
    files, knobs = (place.file,), Knobs(cache_gb=1, io_mode=io_mode, read_threads=THREADS)
    size, seconds, asked, passes, at = place.file.stat().st_size, 0.0, 0, 0, 0
    from_disk: int | None = 0
    while seconds < READ_S:
        if at == 0:
            dropped = drop_cache(files)
            passes += 1
        before, begin = disk_bytes_read(), time.perf_counter()
        asked += plain_reads(files, knobs, CHUNK, at // (block_kib << 10), block_bytes=block_kib << 10, shuffled=passes)
        seconds += time.perf_counter() - begin
        after = disk_bytes_read()
        from_disk = None if from_disk is None or before is None or after is None else from_disk + after - before
        at = (at + CHUNK) % size
    gbps, share = asked / seconds / GB, None if from_disk is None else from_disk / asked
    cached = cached_share(files)
    figures = {
        "io_mode": io_mode, "block_kib": block_kib, "threads": THREADS, "gbps": gbps, "disk_share": share,
        "cached_share_after": cached, "drop_cache": dropped, "asked_gb": asked / GB,
    }  # fmt: skip
    text = f"{gbps:.2f} GB/s, {'an unknown share' if share is None else f'{share:.0%}'} from the disk"
    if io_mode == "direct":
        figures["was_direct"] = was_direct = _was_direct(share, cached)
        text += DIRECT_TEXT[was_direct]
    return Answer(text, figures)


def _was_direct(disk_share: float | None, cached: float | None) -> bool | None:
    """Whether direct reads went past the page cache: all bytes came from the disk, and none stayed in the cache."""
    if disk_share is not None and disk_share < DIRECT_SHARE:
        return False
    if cached is not None:
        return cached < 1 - DIRECT_SHARE
    return None if disk_share is None else True
