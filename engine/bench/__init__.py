"""Benchmarks of the engine: each prints its ceiling beside the measurement, and one JSON document as its last line.

    python -m engine bench io PATH      the reader against plain large reads of the same files
    python -m engine bench decode PATH  decoding at several cache sizes against the resident model
    python -m engine bench open PATH    opening and planning, with its own peak of memory
    python -m engine bench lossy PATH   what the lossy knobs save and what they cost in quality
    python -m engine bench trace PATH   decoding with a trace being taken against decoding without
    python -m engine bench bits PATH    quality of plans of bits at equal bytes
    python -m engine bench grids PATH   what the levels of packed records lose, beside MLX's own and the best possible
    python -m engine bench pack         packing against copying, and what verify_reads costs

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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.disk.direct import open_file
from engine.knobs import Knobs

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
    low, middle, high = spread(shares)
    return middle, low, high


def plain_reads(files: tuple[Path, ...], knobs: Knobs, limit: int, first: int = 0) -> int:
    """Read up to `limit` bytes of the files in 8 MiB blocks, `read_threads` of them side by side, from block number `first`
    on and from the start again after the last. Returns the bytes read."""
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
    """Page-aligned memory that was written before, so that no read pays for its first use."""
    buffers = [mmap.mmap(-1, PLAIN_BLOCK) for _ in range(number)]
    for buffer in buffers:
        buffer.write(bytes(PLAIN_BLOCK))
    return [memoryview(buffer) for buffer in buffers]


def print_json(result: dict[str, Any]) -> None:
    print(json.dumps(result))
