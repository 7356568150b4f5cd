"""Reads of one small file: a reader with test defaults, and pieces with their buffers."""

from __future__ import annotations

from pathlib import Path

from engine.disk.load import Piece
from engine.disk.reader import Reader
from engine.stats import Stats


def reader(
    file: Path, stats: Stats, *, threads: int = 4, kib: int = 64, direct: bool = False, gbps: float | None = None
) -> Reader:
    return Reader((file,), stats, threads=threads, block_bytes=kib * 1024, direct=direct, gbps=gbps)


def pieces(ranges: list[tuple[int, int]]) -> tuple[list[Piece], list[bytearray]]:
    buffers = [bytearray(n) for _, n in ranges]
    return [Piece(0, offset, memoryview(b)) for (offset, _), b in zip(ranges, buffers, strict=True)], buffers
