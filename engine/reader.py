"""Reader: threads that bring byte ranges from the files into memory, block by block.

An expert's ranges that touch are joined and then cut into blocks of at most `read_block_kib`, which the threads read side
by side. Demand reads overtake speculative ones in the queue. The threads only ever call `preadv` and copy bytes; they
never touch MLX, whose streams belong to the main thread.

`direct` goes past the page cache: O_DIRECT on Linux (reads are widened to 4 KiB and pass through an aligned buffer), and
F_NOCACHE on macOS (written from the documented interface, not yet run on a Mac). `ssd_gbps` holds one bandwidth over all
threads: a read is not finished before a disk of that speed would have finished it.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import mmap
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import KnobError, ReadError
from .stats import Stats

ALIGNMENT = 4096
F_NOCACHE = 48  # macOS, <sys/fcntl.h>; Python has no name for it on Linux
DEMAND, SPECULATIVE, STOP = 0, 1, 2


@dataclass(frozen=True)
class Piece:
    """A byte range of a file and the memory it goes to; `into` is writable bytes of exactly the range's length."""

    file: int
    offset: int
    into: memoryview


@dataclass(frozen=True)
class Block:
    """What one read call fetches: consecutive pieces of one file."""

    file: int
    offset: int
    nbytes: int
    into: list[memoryview]


def cut(pieces: list[Piece], block_bytes: int) -> Iterator[Block]:
    """Join pieces that touch and cut them into blocks of at most `block_bytes`."""
    into: list[memoryview] = []
    file = start = end = -1
    for piece in sorted(pieces, key=lambda p: (p.file, p.offset)):
        offset, rest = piece.offset, piece.into
        while len(rest):
            if into and (piece.file != file or offset != end or end - start >= block_bytes):
                yield Block(file, start, end - start, into)
                into = []
            if not into:
                file, start, end = piece.file, offset, offset
            taken = min(len(rest), block_bytes - (end - start))
            into.append(rest[:taken])
            offset, end, rest = offset + taken, end + taken, rest[taken:]
    if into:
        yield Block(file, start, end - start, into)


class Load:
    """One expert on its way in. `wait()` returns once all its blocks have arrived, or raises `ReadError`."""

    def __init__(self, label: str, blocks: int, finish: Callable[[], None] | None) -> None:
        self.label = label
        self._left = blocks
        self._finish = finish
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: Exception | None = None
        self.begun: float | None = None  # perf_counter when its first read began
        self.ended: float | None = None  # and when its last one was there

    def arrived(self, error: ReadError | None = None) -> None:
        """One block is there (or failed); the last one runs `finish`, in the thread that brought it."""
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            if self._left:
                return
        try:
            if self._finish is not None and self._error is None:
                self._finish()
        except Exception as e:  # a defect, but it must reach the caller and not end the thread
            self._error = e
        self.ended = time.perf_counter()
        self._done.set()

    def wait(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Return once nothing is written any more, whatever became of it."""
        self._done.wait()


class Bandwidth:
    """A disk of a given speed: `finish(n)` returns when it would have delivered `n` more bytes."""

    def __init__(self, gbps: float | None) -> None:
        self._bytes_per_s = None if gbps is None else gbps * 1e9
        self._free_at = 0.0
        self._lock = threading.Lock()

    def finish(self, nbytes: int, started: float) -> None:
        if self._bytes_per_s is None:
            return
        with self._lock:
            self._free_at = max(self._free_at, started) + nbytes / self._bytes_per_s
            until = self._free_at
        wait = until - time.perf_counter()
        if wait > 0:
            time.sleep(wait)


class Reader:
    """`threads` threads over the open `files`, which count what they read in `stats`. Close it when done.

    Raises `KnobError` if the file system cannot read past the page cache and `direct` asks for it.
    """

    def __init__(
        self, files: tuple[Path, ...], stats: Stats, *, threads: int, block_bytes: int, direct: bool, gbps: float | None
    ) -> None:
        self.files = files
        self._stats = stats
        self._lock = threading.Lock()
        self._direct = direct
        self._block_bytes = block_bytes
        self._bandwidth = Bandwidth(gbps)
        self._fds = [_open(file, direct) for file in files]
        self._queue: queue.PriorityQueue[tuple[int, int, Block | None, Load | None]] = queue.PriorityQueue()
        self._order = itertools.count()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(
        self, pieces: list[Piece], label: str, *, speculative: bool = False, finish: Callable[[], None] | None = None
    ) -> Load:
        """Queue the pieces of one expert. `finish` runs in a reader thread once all are there."""
        blocks = list(cut(pieces, self._block_bytes))
        load = Load(label, len(blocks), finish)
        for block in blocks:
            self._queue.put((SPECULATIVE if speculative else DEMAND, next(self._order), block, load))
        return load

    def close(self) -> None:
        """Finish what is queued, end the threads and close the files."""
        for _ in self._threads:
            self._queue.put((STOP, next(self._order), None, None))
        for thread in self._threads:
            thread.join()
        for fd in self._fds:
            os.close(fd)
        self._threads, self._fds = [], []

    def _work(self) -> None:
        # O_DIRECT wants aligned memory; a block may begin and end anywhere, so it can touch one page more on each side.
        scratch = memoryview(mmap.mmap(-1, self._block_bytes + 2 * ALIGNMENT)) if self._direct else None
        while True:
            _, _, block, load = self._queue.get()
            if block is None or load is None:
                return
            started = time.perf_counter()
            load.begun = load.begun or started
            try:
                transferred = self._read(block, scratch)
            except OSError as e:
                reason = e.strerror or str(e)
                load.arrived(
                    ReadError(
                        f"{self.files[block.file]}: {load.label} could not be read at byte {block.offset} ({reason}); "
                        "check the disk, or copy the checkpoint again"
                    )
                )
                continue
            self._bandwidth.finish(transferred, started)
            with self._lock:
                self._stats.reads += 1
                self._stats.bytes_read += transferred
            load.arrived()

    def _read(self, block: Block, scratch: memoryview | None) -> int:
        """Read one block to its place; returns the bytes that crossed the bus."""
        fd = self._fds[block.file]
        if scratch is None:
            _read_fully(fd, block.into, block.offset, block.nbytes)
            return block.nbytes
        begin = block.offset // ALIGNMENT * ALIGNMENT
        end = -(-(block.offset + block.nbytes) // ALIGNMENT) * ALIGNMENT
        needed = block.offset + block.nbytes - begin
        _read_fully(fd, [scratch[: end - begin]], begin, needed)
        at = block.offset - begin
        for into in block.into:
            into[:] = scratch[at : at + len(into)]
            at += len(into)
        return end - begin


def _read_fully(fd: int, into: list[memoryview], offset: int, needed: int) -> None:
    """preadv until `needed` bytes are there; short reads go on where they stopped, EINTR is retried by Python."""
    done = 0
    while done < needed:
        count = os.preadv(fd, into, offset + done)
        if count == 0:
            raise OSError(errno.EIO, "unexpected end of file")
        done += count
        if done < needed:
            into = _skip(into, count)


def _skip(into: list[memoryview], count: int) -> list[memoryview]:
    rest = []
    for view in into:
        dropped = min(count, len(view))
        count -= dropped
        if dropped < len(view):
            rest.append(view[dropped:])
    return rest


def _open(file: Path, direct: bool) -> int:
    if not direct:
        return os.open(file, os.O_RDONLY)
    try:
        if sys.platform == "darwin":
            fd = os.open(file, os.O_RDONLY)
            fcntl.fcntl(fd, F_NOCACHE, 1)
            return fd
        return os.open(file, os.O_RDONLY | os.O_DIRECT)
    except OSError as e:
        raise KnobError(
            f"io_mode=direct is not possible for {file} ({os.strerror(e.errno or 0)}); use io_mode=buffered"
        ) from e
