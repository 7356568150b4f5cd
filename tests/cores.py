"""Readers, layers and pools of the extension for its tests, without MLX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from engine.native import core


def a_reader(
    *files: Path, threads: int = 3, block: int = 4096, alignment: int = 1, memory: int = 1, apart: bool = False,
    direct: bool = False, gbps: float = 0.0,
) -> tuple[core.Reader, list[int]]:  # fmt: skip
    """A reader and its file descriptors, which the caller closes."""
    fds = [os.open(file, os.O_RDONLY | (os.O_DIRECT if direct else 0)) for file in files]
    return core.Reader(fds, [memory] * len(fds), threads, block, alignment, 1, apart, 4096, gbps, None), fds


def closed(reader: core.Reader, fds: list[int]) -> None:
    reader.close(True)
    for fd in fds:
        os.close(fd)


def forking() -> dict[str, str]:
    """The environment of a process that forks: the child leaves its copy of a reader's memory, which is no leak."""
    return {**os.environ, "ASAN_OPTIONS": os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"}


class Books:
    """One layer of `experts`, and pools over parts of it that read nothing: the arrays are those that Python sees."""

    def __init__(self, reader: core.Reader, experts: int, half_life: float) -> None:
        self.slot_of = np.full(experts, -1, np.int32)
        self.warmth = np.full(experts, -np.inf)
        self.uses = np.zeros(experts, np.int64)
        self.counts = np.zeros(5, np.int64)
        self.layer = core.Layer(self.slot_of, self.warmth, self.uses, self.counts, half_life)
        self.reader = reader

    def pool(
        self, slots: int, pinned: np.ndarray, size: int = 8, staging: int = 0, made: Any = ()
    ) -> tuple[core.Pool, np.ndarray]:
        """A pool whose experts have `size` bytes of file 0 each, and the memory of its slots."""
        experts = len(self.slot_of)
        fixed = np.zeros(experts, np.uint8)
        fixed[pinned] = 1
        memory = np.zeros(slots * size, np.uint8)
        file, offset = np.zeros(experts, np.int32), np.arange(experts, dtype=np.int64) * size
        source = (file, offset, size, memory if not staging else None, 0, -1)
        return core.Pool(self.layer, self.reader, slots, fixed, [source], list(made), staging, False, None), memory
