"""Reads of one small file: a reader with test defaults, ranges with their buffers, and what the reader's calls were."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.disk.reader import Reader
from engine.native import core

Range = tuple[int, int, memoryview]  # file number, offset, destination
Call = tuple[int, int, list[tuple[int, int]], bool]  # file number, offset, (address, bytes) of destinations, speculative

WAIT_S = 60


def reader(
    file: Path,
    *,
    threads: int = 4,
    kib: int = 64,
    direct: bool = False,
    gbps: float | None = None,
    device: str | None = None,
) -> Reader:
    return Reader((file,), threads=threads, block_bytes=kib * 1024, direct=direct, gbps=gbps, device=device)


def ranges(places: list[tuple[int, int]]) -> tuple[list[Range], list[bytearray]]:
    """The ranges (offset, bytes) of file 0, each with a buffer."""
    buffers = [bytearray(n) for _, n in places]
    return [(0, offset, memoryview(b)) for (offset, _), b in zip(places, buffers, strict=True)], buffers


def raw_reader(
    fd: int, *, alignment: int = 1, memory: int = 1, block_bytes: int = 65536, threads: int = 1, apart: bool = False,
    least: int = 1,
) -> core.Reader:  # fmt: skip
    """A reader of an open file whose reads have the given rules, whatever the system's are."""
    return core.Reader([fd], [memory], threads, block_bytes, alignment, least, apart, max(alignment, 4096), 0.0, None)


def address(view: Any) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)


def inside(calls: list[Call], memory: Any) -> int:
    """Bytes of the calls whose destination is in `memory`."""
    begin, end = address(memory), address(memory) + len(memory)
    return sum(nbytes for _, _, into, _ in calls for at, nbytes in into if begin <= at < end)


def nbytes_of(call: Call) -> int:
    return sum(nbytes for _, nbytes in call[2])


def until(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.001)
