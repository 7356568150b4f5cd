"""Disk: the bandwidth of direct random reads in blocks of an expert's size, of a model's files or of a file written here.

A disk is faster for the first seconds after a pause, so that only the second half of the passes counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.bench.machine.plain_reads import PLAIN_BLOCK, plain_reads
from engine.disk.direct import not_direct
from engine.knobs import GB, Knobs
from engine.system.page_cache import drop_cache
from harness.doctor.examine import temporary_folder

THREADS = 8
FILE_BYTES, PART = 256 << 20, 32 << 20
LEAST_PASSES, PASS_BYTES, PROBE_S = 4, 64 << 20, 4.0
LEAST_BLOCK = 1 << 20


@dataclass(frozen=True)
class DiskSpeed:
    """GB/s, the standard deviation of its logarithm between passes, and how it was read."""

    gbps: float
    sd: float
    how: str


def disk_speed(files: Sequence[Path], expert_bytes: int, folder: Path) -> DiskSpeed:
    """Read `files`, or a new file in `folder`, which is removed. Raises `HeadraceError` if none can be written there."""
    if files:
        largest = max(files, key=lambda file: file.stat().st_size)
        if largest.stat().st_size >= LEAST_BLOCK:
            return _read((largest,), expert_bytes, f"read from {largest.name}")
    with temporary_folder(folder) as made:
        file = made / "random.bin"
        rng = np.random.default_rng()
        with open(file, "wb") as out:
            for _ in range(FILE_BYTES // PART):
                out.write(rng.bytes(PART))
        return _read((file,), expert_bytes, f"read from a file of {FILE_BYTES >> 20} MiB")


def _read(files: tuple[Path, ...], expert_bytes: int, what: str) -> DiskSpeed:
    direct = not not_direct(files[0])
    knobs = Knobs(cache_gb=1, io_mode="direct" if direct else "buffered", read_threads=THREADS)
    block = min(PLAIN_BLOCK, max(LEAST_BLOCK, expert_bytes // 4096 * 4096))
    size = files[0].stat().st_size
    found: list[float] = []
    begin = time.perf_counter()
    while len(found) < LEAST_PASSES or time.perf_counter() - begin < PROBE_S:
        number = len(found)
        if not direct:
            drop_cache(files)
        start = time.perf_counter()
        nbytes = plain_reads(files, knobs, min(PASS_BYTES, size), number * 64, block_bytes=block, shuffled=number)
        found.append(nbytes / (time.perf_counter() - start) / GB)
    settled = found[len(found) // 2 :]
    sd = float(np.std(np.log(settled), ddof=1))
    how = "direct" if direct else "buffered, for this disk has no direct reads"
    return DiskSpeed(statistics.median(settled), sd, f"{what}, {how}, blocks of {block >> 10} KiB")
