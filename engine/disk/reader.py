"""Reader: threads that bring byte ranges from the files into memory, block by block.

An expert's ranges that touch are joined and then cut into blocks of at most `read_block_kib`, which the threads read side
by side. Demand reads overtake speculative ones in the queue. The threads only ever call `preadv` and copy bytes; they
never touch MLX, whose streams belong to the main thread.

`direct` goes past the page cache. On Linux that is O_DIRECT: reads are widened to 4 KiB, and the pages that lie wholly in
one destination, whose address suits the device, go straight there; the others pass through an aligned buffer. On macOS it
is F_NOCACHE (written from the documented interface, not yet run on a Mac). `ssd_gbps` holds one bandwidth over all
threads: a read is not finished before a disk of that speed would have finished it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import operator
import os
import queue
import struct
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from engine.errors import KnobError, ReadError
from engine.stats import Stats

from .throttle import Bandwidth

ALIGNMENT = 4096
F_NOCACHE = 48  # macOS, <sys/fcntl.h>; Python has no name for it on Linux
AT_EMPTY_PATH, STATX_DIOALIGN, DIO_MEM_ALIGN = 0x1000, 0x2000, 0x98  # Linux, <linux/stat.h>; the last is a field's place
PR_SET_TIMERSLACK = 29  # Linux, <linux/prctl.h>; nanoseconds


class Delivery(Protocol):
    """Brings bytes that were read to their place, where `preadv` cannot write there itself; called in the threads."""

    def staging(self, nbytes: int) -> memoryview:
        """Page-aligned memory to read into first."""

    def __call__(self, into: memoryview, source: memoryview) -> None:
        """Copy `source`, a part of the staging memory, to `into`; both are as long."""


class Piece(NamedTuple):
    """A byte range of a file and the memory it goes to; `into` is writable bytes of exactly the range's length."""

    file: int
    offset: int
    into: memoryview


class Block(NamedTuple):
    """What one read call fetches: consecutive pieces of one file."""

    file: int
    offset: int
    nbytes: int
    into: list[memoryview]


def cut(pieces: list[Piece], block_bytes: int, alignment: int = 1) -> Iterator[Block]:
    """Join pieces that touch and cut them into blocks of at most `block_bytes`, or to the next multiple of `alignment` in
    the file, so that no two blocks share a page."""
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


class Load:
    """One expert on its way in. `wait()` returns once all its blocks have arrived, or raises `ReadError`."""

    def __init__(
        self, label: str, blocks: Iterator[Block], finish: Callable[[], None] | None, asked: float, layer: int | None = None
    ) -> None:
        self.label = label
        self.layer = layer  # whose reads these are, for the counters
        self.asked = asked  # when, by the clock of the reader's bandwidth
        self._waiting = deque(blocks)
        self._left = len(self._waiting)
        self._finish = finish
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._error: Exception | None = None
        self.begun: float | None = None  # perf_counter when its first read began
        self.ended: float | None = None  # and when its last one was there
        if not self._left:
            self._end()

    @property
    def waiting(self) -> int:
        """Blocks that no thread has begun."""
        return len(self._waiting)

    def take(self) -> Block | None:
        """The next block to read; None if all are begun or dropped."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return None

    def arrived(self, blocks: int = 1, error: Exception | None = None) -> None:
        """Blocks are there (or failed); the last one runs `finish`, in the thread that brought it."""
        with self._lock:
            self._left -= blocks
            self._error = self._error or error
            if self._left:
                return
        self._end()

    def cancel(self) -> bool:
        """Drop the blocks that no thread has begun. True if there were any: then the expert will not be whole, `wait()`
        raises, and `join()` returns once those that had begun write no more."""
        dropped = sum(1 for _ in iter(self.take, None))
        if dropped:
            self.arrived(dropped, ReadError(f"{self.label} was not read: its load was cancelled"))
        return dropped > 0

    @property
    def failed(self) -> bool:
        """It has ended, and not all of it is there."""
        return self._done.is_set() and self._error is not None

    def wait(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error

    def join(self) -> None:
        """Return once nothing is written any more, whatever became of it."""
        self._done.wait()

    def _end(self) -> None:
        try:
            if self._finish is not None and self._error is None:
                self._finish()
        except Exception as e:  # a defect, but it must reach the caller and not end the thread
            self._error = e
        self.ended = time.perf_counter()
        self._done.set()


class Reader:
    """`threads` threads over the open `files`, which count what they read in `stats`. They start with the first read.
    Close it when done.

    Without `deliver`, reads go straight to their place where they can, and are copied where they cannot.

    Raises `KnobError` if the file system cannot read past the page cache and `direct` asks for it, `ReadError` if a file
    cannot be opened.
    """

    def __init__(
        self,
        files: tuple[Path, ...],
        stats: Stats,
        *,
        threads: int,
        block_bytes: int,
        direct: bool,
        gbps: float | None,
        deliver: Delivery | None = None,
    ) -> None:
        self.files = files
        self._stats = stats
        self._lock = threading.Lock()
        self._block_bytes = block_bytes
        self._alignment = ALIGNMENT if direct else 1
        self._bandwidth = Bandwidth(gbps)
        self._deliver = deliver
        self._fds: list[int] = []
        self._close_files = weakref.finalize(self, _close, self._fds)  # also if it is dropped unused
        self._close_files.atexit = False
        try:
            for file in files:
                self._fds.append(open_file(file, direct))
                if not direct and hasattr(os, "posix_fadvise"):
                    # Readahead takes what lies behind an expert for its continuation: up to 2.4 times the bytes asked for.
                    os.posix_fadvise(self._fds[-1], 0, 0, os.POSIX_FADV_RANDOM)
            memory = [_memory_alignment(fd, file) if direct else 1 for fd, file in zip(self._fds, files, strict=True)]
        except Exception:
            self._close_files()
            raise
        self._memory = memory if deliver is None else [0] * len(files)
        self._demand: deque[Load | None] = deque()
        self._speculative: deque[Load | None] = deque()
        self._ready: queue.SimpleQueue[None] = queue.SimpleQueue()  # one for each entry of the two above
        self._number = threads
        self._threads: list[threading.Thread] = []

    def submit(
        self,
        pieces: list[Piece],
        label: str,
        *,
        speculative: bool = False,
        finish: Callable[[], None] | None = None,
        layer: int | None = None,
    ) -> Load:
        """Queue the pieces of one expert. `finish` runs in a reader thread once all are there; the reads are counted for
        the layer of that number too."""
        if not self._close_files.alive:
            raise ReadError(f"{label} cannot be read: the reader is closed; load the model again")
        load = Load(label, cut(pieces, self._block_bytes, self._alignment), finish, self._bandwidth.clock(), layer)
        self._put(load, self._speculative if speculative else self._demand)
        return load

    def make(self, target: np.ndarray, fill: Callable[[np.ndarray], None]) -> None:
        """Have `fill` write what belongs into `target`; called by what finishes a load, in its thread."""
        if self._deliver is None:
            fill(target)
        else:
            made = np.empty_like(target)
            fill(made)
            self._deliver(_bytes_of(target), _bytes_of(made))

    def hurry(self, load: Load) -> None:
        """What is left of a speculative load is demanded now."""
        self._put(load, self._demand)

    def close(self) -> None:
        """Read what was demanded, drop what is speculative and not begun, end the threads and close the files."""
        for load in list(self._speculative):
            if load is not None:
                load.cancel()
        for _ in self._threads:
            self._speculative.append(None)
            self._ready.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []
        self._close_files()

    def _put(self, load: Load, entries: deque[Load | None]) -> None:
        for _ in range(load.waiting):
            entries.append(load)
            self._ready.put(None)
        while len(self._threads) < self._number:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def _next(self) -> Load | None:
        """A load with a block to read, demanded ones first; None: stop."""
        self._ready.get()
        while True:  # an entry is there for every `get`, but another thread may take the one seen
            for entries in (self._demand, self._speculative):
                try:
                    return entries.popleft()
                except IndexError:
                    continue

    def _work(self) -> None:
        _sleep_precisely()
        scratch: memoryview | None = None
        while (load := self._next()) is not None:
            block = load.take()
            if block is None:  # cancelled, or hurried and read already
                continue
            load.begun = load.begun or time.perf_counter()
            try:
                scratch = scratch or self._scratch()
                transferred = self._read(block, scratch)
            except OSError as e:
                reason = e.strerror or str(e)
                error = ReadError(
                    f"{self.files[block.file]}: {load.label} could not be read at byte {block.offset} ({reason}); "
                    "check the disk, or copy the checkpoint again"
                )
                load.arrived(error=error)
            except Exception as e:  # of `deliver`; it must reach the caller and not end the thread
                load.arrived(error=e)
            else:
                self._bandwidth.finish(transferred, load.asked)
                with self._lock:
                    self._stats.count_read(load.layer, transferred)
                load.arrived()

    def _scratch(self) -> memoryview:
        """One thread's memory for what cannot be read straight to its place."""
        nbytes = self._block_bytes + 2 * ALIGNMENT
        return memoryview(mmap.mmap(-1, nbytes)) if self._deliver is None else self._deliver.staging(nbytes)

    def _read(self, block: Block, scratch: memoryview) -> int:
        """Read one block to its place; returns the bytes that crossed the bus."""
        begin = block.offset // self._alignment * self._alignment
        needed = block.offset + block.nbytes - begin
        transferred = -(-needed // self._alignment) * self._alignment
        views, rest = _lay_out(block, begin, scratch[:transferred], self._alignment, self._memory[block.file])
        _read_fully(self._fds[block.file], views, begin, needed, self._alignment)
        for into, source in rest:
            (self._deliver or _copy)(into, source)
        return transferred


def _lay_out(
    block: Block, begin: int, scratch: memoryview, alignment: int, memory: int
) -> tuple[list[memoryview], list[tuple[memoryview, memoryview]]]:
    """Where a read from `begin` of as many bytes as `scratch` puts them, and what must then be brought to its place from
    where. Whole units of `alignment` bytes of the file go straight to their place if its address is a multiple of `memory`
    (0: never); all else goes to `scratch`."""
    views, rest = [], []
    done, at = 0, block.offset - begin
    for into in block.into:
        first, last = -(-at // alignment) * alignment, (at + len(into)) // alignment * alignment
        if memory and first < last and (memory == 1 or (address(into) + first - at) % memory == 0):
            views += [scratch[done:first], into[first - at : last - at]]
            rest += [(into[: first - at], scratch[at:first]), (into[last - at :], scratch[last : at + len(into)])]
            done = last
        else:
            rest.append((into, scratch[at : at + len(into)]))
        at += len(into)
    views.append(scratch[done:])
    return [v for v in views if len(v)], [(into, source) for into, source in rest if len(into)]


def _read_fully(fd: int, into: list[memoryview], offset: int, needed: int, alignment: int) -> None:
    """preadv until `needed` bytes are there. A short read is gone on with where it stopped, in units of `alignment`; one
    that a signal interrupted is made again."""
    done = 0
    while done < needed:
        try:
            count = os.preadv(fd, into, offset + done)
        except InterruptedError:
            continue
        if done + count < needed:
            count -= count % alignment
            into = _skip(into, count)
        if count == 0:
            raise OSError(errno.EIO, "unexpected end of file")
        done += count


def _skip(into: list[memoryview], count: int) -> list[memoryview]:
    rest = []
    for view in into:
        dropped = min(count, len(view))
        count -= dropped
        if dropped < len(view):
            rest.append(view[dropped:])
    return rest


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _copy(into: memoryview, source: memoryview) -> None:
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(source, np.uint8))  # without the GIL, unlike a memoryview's copy


def address(view: memoryview) -> int:
    """Where writable memory begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def open_file(file: Path, direct: bool) -> int:
    """A file descriptor for reading, past the page cache if `direct`. Raises `KnobError`, `ReadError`."""
    flags = os.O_RDONLY | (os.O_DIRECT if direct and sys.platform != "darwin" else 0)
    try:
        fd = os.open(file, flags)
    except OSError as e:
        if direct and e.errno in (errno.EINVAL, errno.EOPNOTSUPP):
            raise _not_direct(file, str(e.strerror)) from e
        raise ReadError(f"{file} cannot be opened ({e.strerror}); check that it is there and may be read") from e
    if direct and sys.platform == "darwin":
        try:
            fcntl.fcntl(fd, F_NOCACHE, 1)
        except OSError as e:
            os.close(fd)
            raise _not_direct(file, str(e.strerror)) from e
    return fd


def _not_direct(file: Path, reason: str) -> KnobError:
    return KnobError(f"io_mode=direct is not possible for {file} ({reason}); use io_mode=buffered")


def _memory_alignment(fd: int, file: Path) -> int:
    """What the address of a direct read must be a multiple of; a page where the system does not say (Linux from 6.1 on)."""
    statx = getattr(ctypes.CDLL(None), "statx", None)
    told = ctypes.create_string_buffer(256)
    if statx is None or statx(fd, b"", AT_EMPTY_PATH, STATX_DIOALIGN, told) != 0:
        return ALIGNMENT
    (mask,), (alignment,) = struct.unpack_from("I", told), struct.unpack_from("I", told, DIO_MEM_ALIGN)
    if not mask & STATX_DIOALIGN:
        return ALIGNMENT
    if alignment == 0:
        raise _not_direct(file, "its file system reads it through the page cache")
    return int(alignment)


def _sleep_precisely() -> None:
    """Have Linux end this thread's sleeps on time: it may take 50 us longer over each to save power. macOS has no prctl."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
