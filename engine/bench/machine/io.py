"""bench io: the reader against plain large reads of the same files, or against the bandwidth that `ssd_gbps` simulates."""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from engine.cache.slots import PAGE, SlotArray
from engine.checkpoint.checkpoint import Checkpoint
from engine.disk.direct import open_file
from engine.disk.reader import Reader
from engine.errors import CheckpointError
from engine.knobs import GB, Knobs
from engine.measure.read_source import read_note, source_of
from engine.system.memory import disk_bytes_read
from engine.system.page_cache import drop_cache

from ..contender import Contender, in_turns, ratios
from .plain_reads import PLAIN_BLOCK, plain_reads

Group = list[tuple[int, int, int]]  # (file, offset, bytes) of an expert's tensors
BURST = 4  # experts requested at once


def bench_io(path: Path, knobs: Knobs, *, rounds: int, mib: int, expert_kib: int | None) -> dict[str, Any]:
    """Read experts in random order into slots, against plain reads of the same files in 8 MiB blocks, in order from a
    random place, with the same number of threads. The page cache is dropped before every turn; `disk_share` is the share of
    the bytes that then came from the disk. With `ssd_gbps`: the bandwidth reached, against the one simulated."""
    files, groups = _experts(path, expert_kib)
    bench = _Bench(files, groups, knobs)
    try:
        if knobs.ssd_gbps is not None:
            return bench.limited(knobs.ssd_gbps, rounds)
        return bench.share(rounds, mib << 20)
    finally:
        bench.reader.close()


class _Bench:
    """A reader as in an engine, and slots for the experts of one turn."""

    def __init__(self, files: tuple[Path, ...], groups: list[Group], knobs: Knobs) -> None:
        self.files, self.groups, self.knobs = files, groups, knobs
        self.expert_bytes = statistics.mean(sum(n for _, _, n in group) for group in groups)
        self.reader = Reader(
            files, threads=knobs.read_threads, block_bytes=knobs.read_block_kib * 1024,
            direct=knobs.io_mode == "direct", gbps=knobs.ssd_gbps,
        )  # fmt: skip
        self._rng = np.random.default_rng(0)
        self._order = self._shuffled()

    def share(self, rounds: int, turn_bytes: int) -> dict[str, Any]:
        knobs = self.knobs
        number = self._make_slots(max(turn_bytes, 4 * knobs.read_threads * PLAIN_BLOCK))
        turn_bytes = int(number * self.expert_bytes)
        dropped, seen = "", []

        def turn(read: Callable[[], int]) -> float:
            nonlocal dropped
            dropped = drop_cache(self.files)
            before, begin = disk_bytes_read(), time.perf_counter()
            nbytes = read()
            seconds = time.perf_counter() - begin
            after = disk_bytes_read()
            if before is not None and after is not None:
                seen.append((after - before) / nbytes)
            return nbytes / seconds / GB

        def plain() -> int:
            return plain_reads(self.files, knobs, turn_bytes, int(self._rng.integers(1 << 30)))

        contenders = [Contender("reader", lambda: turn(lambda: self.read(number))), Contender("plain", lambda: turn(plain))]
        in_turns(contenders, rounds)
        measured, ceiling = contenders[0].median, contenders[1].median
        _, low, high = ratios(contenders[0], contenders[1])
        disk_share = statistics.median(seen) if seen else None
        self._headline(rounds, turn_bytes)
        names = "measured: experts in random order", "ceiling: plain 8 MiB reads in order"
        for contender, what in zip(contenders, names, strict=True):
            lower, upper = contender.quartiles
            print(f"  {what:<38}{contender.median:8.3f} GB/s  ({lower:.3f} .. {upper:.3f})")
        print(f"  share of the ceiling                  {measured / ceiling:8.3f}       ({low:.3f} .. {high:.3f})")
        share = "        (unknown)" if disk_share is None else f"{disk_share:8.3f} of those read"
        print(f"  bytes that came from the disk         {share}; cache dropped by: {dropped}")
        cached = None if disk_share is None else max(0.0, 1 - disk_share)
        if note := read_note(knobs.io_mode, cached, files=self.files):
            print(f"note: {note}")
        return self._result() | {
            "measured_gbps": measured, "ceiling_gbps": ceiling, "share": measured / ceiling,
            "share_quartiles": [low, high], "disk_share": disk_share, "read_source": source_of(cached),
            "drop_cache": dropped,
        }  # fmt: skip

    def limited(self, limit_gbps: float, rounds: int) -> dict[str, Any]:
        """Read about one second's worth of experts per turn, the same in every turn: all requested at once, and a few at a
        time with pauses that do not count. They are in the page cache, so that the disk itself hardly matters."""
        number = self._make_slots(int(max(limit_gbps * GB, BURST * self.expert_bytes)))
        self.groups = self.groups[:number]
        self._order = self._shuffled()
        for file, offset, size in itertools.chain(*self.groups):
            with self.files[file].open("rb", buffering=0) as f:
                f.seek(offset)
                f.read(size)

        def at_once() -> float:
            begin = time.perf_counter()
            nbytes = self.read(number)
            return nbytes / (time.perf_counter() - begin) / GB / limit_gbps

        def in_bursts() -> float:
            nbytes, seconds = 0, 0.0
            for begin in range(0, number, BURST):
                time.sleep(self._rng.uniform(0, 0.05))
                started = time.perf_counter()
                nbytes += self.read(min(BURST, number - begin))
                seconds += time.perf_counter() - started
            return nbytes / seconds / GB / limit_gbps

        contenders = [Contender("at once", at_once), Contender("in bursts", in_bursts)]
        in_turns(contenders, rounds)
        nbytes = int(number * self.expert_bytes)
        begin = time.perf_counter()
        ceiling = plain_reads(self.files, self.knobs, max(nbytes, 256 << 20)) / (time.perf_counter() - begin) / GB
        self._headline(rounds, nbytes)
        print(f"  requested                             {limit_gbps:8.3f} GB/s")
        names = "reached, all requested at once", f"reached, {BURST} at a time, with pauses"
        for contender, what in zip(contenders, names, strict=True):
            low, high = contender.quartiles
            print(f"  {what:<38}{contender.median:8.3f} of it    ({low:.3f} .. {high:.3f})")
        print(f"  plain 8 MiB reads, unlimited          {ceiling:8.3f} GB/s")
        held = {"held_share": contenders[0].median, "held_share_in_bursts": contenders[1].median}
        return self._result() | {"ssd_gbps": limit_gbps, **held, "ceiling_gbps": ceiling}

    def read(self, number: int) -> int:
        """Read the next `number` experts; returns their bytes."""
        loads, nbytes = [], 0
        for slot in range(number):
            ranges = [
                (file, offset, array.memory[slot, :size].data)
                for (file, offset, size), array in zip(next(self._order), self._slots, strict=False)
            ]
            nbytes += sum(len(into) for _, _, into in ranges)
            loads.append(self.reader.native.submit(ranges))
        for load in loads:
            failure = load.wait()
            if failure is not None:
                raise self.reader.error("an expert", failure)
        return nbytes

    def _make_slots(self, nbytes: int) -> int:
        """Make slots for about `nbytes` of experts, at most for all of them; returns their number."""
        number = min(len(self.groups), math.ceil(nbytes / self.expert_bytes))
        sizes = [max(n for _, _, n in tensor) for tensor in itertools.zip_longest(*self.groups, fillvalue=(0, 0, 0))]
        phases = [offset % PAGE for _, offset, _ in max(self.groups, key=len)]
        self._slots = [SlotArray(number, (n,), mx.uint8, phase) for n, phase in zip(sizes, phases, strict=True)]
        return number

    def _shuffled(self) -> Iterator[Group]:
        while True:
            for i in self._rng.permutation(len(self.groups)):
                yield self.groups[i]

    def _headline(self, rounds: int, turn_bytes: int) -> None:
        knobs = self.knobs
        print(
            f"experts of {self.expert_bytes / 1024:.0f} KiB, {knobs.io_mode}, {knobs.read_threads} threads, "
            f"blocks of {knobs.read_block_kib} KiB, {rounds} rounds of {turn_bytes / (1 << 20):.0f} MiB"
        )

    def _result(self) -> dict[str, Any]:
        knobs = self.knobs
        return {
            "bench": "io", "expert_kib": self.expert_bytes / 1024, "io_mode": knobs.io_mode,
            "read_threads": knobs.read_threads, "read_block_kib": knobs.read_block_kib,
        }  # fmt: skip


def _experts(path: Path, expert_kib: int | None) -> tuple[tuple[Path, ...], list[Group]]:
    """The files and byte ranges of all experts: the checkpoint's own, or equal slices of `expert_kib` of any file."""
    if path.is_dir() and expert_kib is None:
        source = Checkpoint.open(path)
        groups = [
            [(int(t.file[e]), int(t.offset[e]), t.nbytes) for t in layer.tensors]
            for layer in source.layers
            for e in range(layer.experts)
        ]
        files = source.files
    else:
        files = tuple(sorted(path.glob("*.safetensors"))) if path.is_dir() else (path,)
        for file in files:
            os.close(open_file(file, direct=False))
        size = (expert_kib or 1024) * 1024
        groups = [[(n, at, size)] for n, f in enumerate(files) for at in range(0, f.stat().st_size - size + 1, size)]
    if not groups:
        raise CheckpointError(f"{path} holds no experts and no {expert_kib or 1024} KiB to read; give a larger file")
    return files, groups
