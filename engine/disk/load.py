"""Loads: the byte ranges of an expert, cut into blocks that threads read side by side."""

from __future__ import annotations

import operator
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from engine.errors import ReadError


class Piece(NamedTuple):
    """A byte range of a file and its destination: `into` is writable memory of the range's length."""

    file: int
    offset: int
    into: memoryview


class Block(NamedTuple):
    """One read call: consecutive pieces of one file."""

    file: int
    offset: int
    nbytes: int
    into: list[memoryview]


def cut(pieces: list[Piece], block_bytes: int, alignment: int = 1) -> Iterator[Block]:
    """Join adjacent pieces and cut them into blocks of at most `block_bytes`, extended to the next multiple of `alignment`
    in the file, so that no two blocks share a page."""
    into: list[memoryview] = []
    file = start = end = stop = -1
    for piece in sorted(pieces, key=operator.itemgetter(0, 1)):
        offset, rest = piece.offset, piece.into
        while len(rest):
            if into and (piece.file != file or offset != end or end == stop):
                yield Block(file, start, end - start, into)
                into = []
            if not into:
                file, start, end = piece.file, offset, offset
                stop = -(-(start + block_bytes) // alignment) * alignment
            taken = min(len(rest), stop - end)
            into.append(rest[:taken])
            offset, end, rest = offset + taken, end + taken, rest[taken:]
    if into:
        yield Block(file, start, end - start, into)


class ExpertLoad:
    """The reads of one expert. `wait()` returns when all its blocks have arrived, or raises `ReadError`."""

    def __init__(
        self,
        label: str,
        blocks: Iterator[Block],
        finish: Callable[[], None] | None,
        requested: float,
        layer: int | None = None,
    ) -> None:
        self.label = label
        self.layer = layer  # layer whose counters these reads increase
        self.requested = requested  # time of the request, by the clock of the reader's bandwidth
        self._waiting = deque(blocks)
        self._left = len(self._waiting)
        self._finish = finish
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: Exception | None = None
        self.begun: float | None = None  # perf_counter at the start of the first read
        self.ended: float | None = None  # perf_counter at the end of the last read
        if not self._left:
            self._end()

    @property
    def waiting(self) -> int:
        """Number of blocks that no thread has begun."""
        return len(self._waiting)

    def take(self) -> Block | None:
        """The next block to read; None if all have begun or were dropped."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def arrived(self, blocks: int = 1, error: Exception | None = None) -> None:
        """Record that blocks arrived or failed. The last one runs `finish`, in the thread that read it."""
        with self._lock:
            self._left -= blocks
            self._error = self._error or error
            if self._left:
                return
        self._end()

    def cancel(self) -> bool:
        """Drop the blocks that no thread has begun. Returns True if there were any; then `wait()` raises `ReadError`, and
        `join()` returns when the blocks that had begun have ended."""
        dropped = sum(1 for _ in iter(self.take, None))
        if dropped:
            self.arrived(dropped, ReadError(f"{self.label} was not read: its load was cancelled"))
        return dropped > 0

    @property
    def failed(self) -> bool:
        """Whether the load has ended with an error."""
        return self._done.is_set() and self._error is not None

    def wait(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Return when no thread writes any more, with or without an error."""
        self._done.wait()

    def _end(self) -> None:
        try:
            if self._finish is not None and self._error is None:
                self._finish()
        except Exception as e:  # must reach the caller and not end the thread
            self._error = e
        self.ended = time.perf_counter()
        self._done.set()
