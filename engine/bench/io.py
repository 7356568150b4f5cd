"""bench io: the reader against plain large reads of the same files, in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import Checkpoint
from ..errors import CheckpointError
from ..knobs import GB, Knobs
from ..reader import Piece, Reader
from ..stats import Stats
from . import Arm, disk_bytes, drop_cache, in_turns, plain_reads, ratios


def bench_io(path: Path, knobs: Knobs, *, rounds: int, mib: int, expert_kib: int | None) -> dict[str, Any]:
    """Experts in random order through the reader, against plain sequential reads of the same files in 8 MiB blocks with
    as many threads. The page cache is dropped before every turn; whether that reached the disk is in `disk_share`."""
    files, pieces = _ranges(path, expert_kib, mib << 20)
    expert_bytes = sum(len(p.into) for p in pieces[0])
    total = sum(len(p.into) for group in pieces for p in group)
    seen: list[float] = []

    def turn(read: Callable[[], int]) -> float:
        drop_cache(files)
        before, begin = disk_bytes(), time.perf_counter()
        nbytes = read()
        seconds = time.perf_counter() - begin
        seen.append((disk_bytes() - before) / nbytes)
        return nbytes / seconds / GB

    def ours() -> int:
        reader = _reader(files, knobs)
        loads = [reader.submit(group, "expert") for group in pieces]
        for load in loads:
            load.wait()
        reader.close()
        return total

    arms = [Arm("reader", lambda: turn(ours)), Arm("plain", lambda: turn(lambda: plain_reads(files, knobs, total)))]
    in_turns(arms, rounds)
    share, low, high = ratios(arms[0], arms[1])
    how = f"{knobs.io_mode}, {knobs.read_threads} threads, {rounds} rounds of {total / (1 << 20):.0f} MiB"
    print(f"experts of {expert_bytes / 1024:.0f} KiB, {how}")
    for arm, what in zip(arms, ("measured: experts in random order", "ceiling: plain 8 MiB reads in order"), strict=True):
        print(f"  {what:<38}{arm.median:8.3f} GB/s  ({arm.quartiles[0]:.3f} .. {arm.quartiles[1]:.3f})")
    print(f"  share of the ceiling                  {share:8.3f}       ({low:.3f} .. {high:.3f})")
    print(f"  bytes that came from the disk         {statistics.median(seen):8.3f} of those read")
    return {
        "bench": "io", "expert_kib": expert_bytes / 1024, "io_mode": knobs.io_mode, "read_threads": knobs.read_threads,
        "read_block_kib": knobs.read_block_kib, "measured_gbps": arms[0].median, "ceiling_gbps": arms[1].median,
        "share": share, "share_quartiles": [low, high], "disk_share": statistics.median(seen),
    }  # fmt: skip


def _ranges(path: Path, expert_kib: int | None, limit: int) -> tuple[tuple[Path, ...], list[list[Piece]]]:
    """The files and, in random order, the pieces of up to `limit` bytes of experts: the checkpoint's own, or equal
    slices of `expert_kib` of any file."""
    rng = np.random.default_rng(0)
    if path.is_dir() and expert_kib is None:
        source = Checkpoint.open(path)
        groups = []
        for layer in source.layers:
            for e in range(layer.experts):
                groups.append([(int(t.file[e]), int(t.offset[e]), t.nbytes) for t in layer.tensors])
        files = source.files
    else:
        files = tuple(sorted(path.glob("*.safetensors"))) if path.is_dir() else (path,)
        size = (expert_kib or 1024) * 1024
        groups = [[(n, at, size)] for n, f in enumerate(files) for at in range(0, f.stat().st_size - size + 1, size)]
    if not groups:
        raise CheckpointError(f"{path} holds no experts and no {expert_kib or 1024} KiB to read; give a larger file")
    order = rng.permutation(len(groups))
    chosen, total = [], 0
    for i in order:
        if total >= limit:
            break
        chosen.append([Piece(file, at, memoryview(bytearray(n))) for file, at, n in groups[i]])
        total += sum(n for _, _, n in groups[i])
    return files, chosen


def _reader(files: tuple[Path, ...], knobs: Knobs) -> Reader:
    return Reader(
        files, Stats(), threads=knobs.read_threads, block_bytes=knobs.read_block_kib * 1024,
        direct=knobs.io_mode == "direct", gbps=knobs.ssd_gbps,
    )  # fmt: skip
