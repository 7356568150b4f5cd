"""Benchmarks of the engine: each prints its ceiling beside the measurement, and one JSON document as its last line.

    python -m engine bench io PATH              the reader against plain large reads of the same files
    python -m engine bench decode --model PATH  decoding at several cache sizes against the resident model

Machines are shared and noisy: what is compared is measured in one process, in turns, and reported as a median with its
quartiles. Absolute figures are of this machine and this moment; the shares are what carries over.
"""

from __future__ import annotations

import functools
import json
import mmap
import os
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint import Checkpoint
from .errors import CheckpointError
from .judge import Judge
from .knobs import GB, Knobs
from .reader import Piece, Reader
from .stats import Stats

PLAIN_BLOCK = 8 << 20


@dataclass
class Arm:
    """One of the things compared: `run` makes one turn and returns its figure."""

    name: str
    run: Callable[[], float]
    figures: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.figures, [0.25, 0.75])
        return float(low), float(high)


def in_turns(arms: list[Arm], rounds: int) -> None:
    """`rounds` turns of every arm, each second round in reverse order, so that a drift meets all alike."""
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            arm.figures.append(arm.run())


def ratios(arm: Arm, base: Arm) -> tuple[float, float, float]:
    """Median and quartiles of the arm's figures over the base's of the same round."""
    shares = [a / b for a, b in zip(arm.figures, base.figures, strict=True)]
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def bench_io(path: Path, knobs: Knobs, *, rounds: int, mib: int, expert_kib: int | None) -> dict[str, Any]:
    """Experts in random order through the reader, against plain sequential reads of the same files in 8 MiB blocks with
    as many threads. The page cache is dropped before every turn; whether that reached the disk is in `disk_share`."""
    files, pieces = _ranges(path, expert_kib, mib << 20)
    expert_bytes = sum(len(p.into) for p in pieces[0])
    total = sum(len(p.into) for group in pieces for p in group)
    seen: list[float] = []

    def turn(read: Callable[[], int]) -> float:
        _drop_cache(files)
        before, begin = _disk_bytes(), time.perf_counter()
        nbytes = read()
        seconds = time.perf_counter() - begin
        seen.append((_disk_bytes() - before) / nbytes)
        return nbytes / seconds / GB

    def ours() -> int:
        reader = _reader(files, knobs)
        loads = [reader.submit(group, "expert") for group in pieces]
        for load in loads:
            load.wait()
        reader.close()
        return total

    arms = [Arm("reader", lambda: turn(ours)), Arm("plain", lambda: turn(lambda: _plain(files, knobs, total)))]
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


def bench_decode(
    model: Path, knobs: Knobs, judge: Judge, *, rounds: int, cached: list[float], resident: bool
) -> dict[str, Any]:
    """Decode the judge's continuations at several cached shares, in turns with the resident model.

    Serial ceiling: 1 / (io + compute), overlapped 1 / max(io, compute); compute is the resident model's time a token, io
    the bytes read over the bandwidth of plain reads in this run (or the one that `ssd_gbps` holds).
    """
    from .engine import Engine, load
    from .plan import footprint

    sizes = footprint(model, knobs)
    engines: dict[str, Engine] = {}
    if resident:
        lossy = {name: getattr(knobs, name) for name in ("expert_bits", "cold_bits", "hot_share")}
        engines["resident"] = load(model, Knobs(**lossy))
    for share in cached:
        cache_gb = max(sizes.one_token_gb, share * sizes.all_experts_gb)
        engines[f"{share:.1%}"] = load(model, Knobs.from_mapping({**knobs.as_dict(), "cache_gb": cache_gb}))
    results: dict[str, list[Any]] = {name: [] for name in engines}

    def turn(name: str) -> float:
        engine = engines[name]
        measurement = engine.measure(judge)
        results[name].append((measurement, engine.stats.passes, engine.stats.windows))
        return measurement.decode_tok_s

    arms = [Arm(name, functools.partial(turn, name)) for name in engines]
    in_turns(arms, rounds)
    source = Checkpoint.open(model)
    plain = Arm("plain", lambda: _timed_plain(source.files, knobs))
    in_turns([plain], 3)
    gbps = knobs.ssd_gbps or plain.median
    base = arms[0] if resident else None
    rows = []
    for arm in arms:
        measurement, passes, windows = results[arm.name][-1]
        row: dict[str, Any] = {
            "cached": arm.name, "decode_tok_s": arm.median, "quartiles": arm.quartiles, "hit_rate": measurement.hit_rate,
            "bytes_per_token": measurement.bytes_per_token, "passes_per_window": passes / windows if windows else None,
        }  # fmt: skip
        if base is not None:
            row["share_of_resident"] = ratios(arm, base)
            compute, io = 1 / base.median, measurement.bytes_per_token / GB / gbps
            row["share_of_serial"] = arm.median * (io + compute)
            row["share_of_overlapped"] = arm.median * max(io, compute)
        rows.append(row)
    for engine in engines.values():
        engine.close()
    _print_decode(rows, gbps, knobs)
    return {"bench": "decode", "model": source.architecture, "io_gbps": gbps, "knobs": knobs.as_dict(), "rows": rows}


def _print_decode(rows: list[dict[str, Any]], gbps: float, knobs: Knobs) -> None:
    from rich.console import Console
    from rich.table import Table

    held = "held by ssd_gbps" if knobs.ssd_gbps else "plain reads in this run"
    table = Table(title=f"decode; io ceiling {gbps:.2f} GB/s ({held})", box=None)
    for name in ("cached", "tok/s", "of resident", "of 1/(io+compute)", "of 1/max", "hit", "passes"):
        table.add_column(name, justify="right")
    for row in rows:
        share = row.get("share_of_resident")
        table.add_row(
            row["cached"],
            f"{row['decode_tok_s']:.1f} ({row['quartiles'][0]:.1f} .. {row['quartiles'][1]:.1f})",
            f"{share[0]:.2f} ({share[1]:.2f} .. {share[2]:.2f})" if share else "-",
            f"{row['share_of_serial']:.2f}" if share else "-",
            f"{row['share_of_overlapped']:.2f}" if share else "-",
            "-" if row["hit_rate"] is None else f"{row['hit_rate']:.3f}",
            "-" if row["passes_per_window"] is None else f"{row['passes_per_window']:.2f}",
        )
    Console().print(table)


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


def _plain(files: tuple[Path, ...], knobs: Knobs, limit: int) -> int:
    """Read up to `limit` bytes of the files from their start in 8 MiB blocks, `read_threads` of them side by side."""
    flags = os.O_RDONLY | (getattr(os, "O_DIRECT", 0) if knobs.io_mode == "direct" else 0)
    fds = [os.open(f, flags) for f in files]
    blocks = [(fd, at) for fd, f in zip(fds, files, strict=True) for at in range(0, f.stat().st_size, PLAIN_BLOCK)]
    blocks = blocks[: -(-limit // PLAIN_BLOCK)]
    todo, done, lock = iter(blocks), [0], threading.Lock()

    def work() -> None:
        buffer = memoryview(mmap.mmap(-1, PLAIN_BLOCK))
        while True:
            with lock:
                block = next(todo, None)
            if block is None:
                return
            count = os.preadv(block[0], [buffer], block[1])
            with lock:
                done[0] += count

    threads = [threading.Thread(target=work) for _ in range(knobs.read_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fd in fds:
        os.close(fd)
    return done[0]


def _timed_plain(files: tuple[Path, ...], knobs: Knobs) -> float:
    if knobs.io_mode == "direct":
        _drop_cache(files)
    begin = time.perf_counter()
    return _plain(files, knobs, 256 << 20) / (time.perf_counter() - begin) / GB


def _drop_cache(files: tuple[Path, ...]) -> None:
    """Ask the system to forget the files' pages; only written-back ones go, and only where there is posix_fadvise."""
    if hasattr(os, "posix_fadvise"):
        for file in files:
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _disk_bytes() -> int:
    """Bytes this process had fetched from storage so far, where the system says (Linux)."""
    try:
        with open("/proc/self/io") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("read_bytes"))
    except OSError:
        return 0


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result))
