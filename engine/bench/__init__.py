"""Benchmarks of the engine: each prints its ceiling beside the measurement, and one JSON document as its last line.

    python -m engine bench io PATH      the reader against plain large reads of the same files
    python -m engine bench decode PATH  decoding at several cache sizes against the resident model

Machines are shared and noisy: what is compared is measured in one process, in turns, and reported as a median with its
quartiles. Absolute figures are of this machine and this moment; the shares are what carries over.
"""

from __future__ import annotations

import json
import mmap
import os
import statistics
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..knobs import Knobs

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


def spread(figures: list[float] | np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = np.quantile(figures, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def ratios(arm: Arm, base: Arm) -> tuple[float, float, float]:
    """Median and quartiles of the arm's figures over the base's of the same round."""
    shares = [a / b for a, b in zip(arm.figures, base.figures, strict=True)]
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75])
    return float(middle), float(low), float(high)


def plain_reads(files: tuple[Path, ...], knobs: Knobs, limit: int) -> int:
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


def drop_cache(files: tuple[Path, ...]) -> None:
    """Ask the system to forget the files' pages; only written-back ones go, and only where there is posix_fadvise."""
    if hasattr(os, "posix_fadvise"):
        for file in files:
            fd = os.open(file, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def disk_bytes() -> int:
    """Bytes this process had fetched from storage so far, where the system says (Linux)."""
    try:
        with open("/proc/self/io") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("read_bytes"))
    except OSError:
        return 0


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result))
