"""Reader: threads that bring byte ranges from the files into memory, block by block.

Adjacent ranges of an expert are joined and cut into blocks of at most `read_block_kib`, which the threads read side by side.
Demand reads overtake speculative ones in the queue. The threads only call `preadv` and copy bytes; they never touch MLX,
whose streams belong to the main thread.

`direct` reads past the page cache: reads are widened to whole units of 4 KiB (macOS: a page), whole units go straight to
their destination if its address suits the device, and the others pass through an aligned buffer (`direct`). `ssd_gbps`
simulates one bandwidth over all threads: a read ends no earlier than on a disk of that speed (`throttle`).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.errors import ReadError
from engine.stats import Stats
from engine.system.open_files import ensure_open_files

from .direct import SEPARATE_BYTES, direct_unit, lay_out, memory_alignment, open_file, read_apart, read_fully
from .load import Block, ExpertLoad, Piece, cut
from .throttle import Bandwidth

PR_SET_TIMERSLACK = 29  # Linux, <linux/prctl.h>; nanoseconds


class Delivery(Protocol):
    """Copies bytes that were read to a place where `preadv` cannot write; called in the reader's threads."""

    def staging(self, nbytes: int) -> memoryview:
        """Page-aligned memory to read into first."""

    def __call__(self, into: memoryview, source: memoryview) -> None:
        """Copy `source`, a part of the staging memory, to `into`, which has the same length."""


class Reader:
    """A pool of `threads` threads that read from the open `files` and count their reads in `stats`. The threads start with
    the first read. Close the reader when done.

    Without `deliver`, reads go straight to their place where alignment allows, and are copied elsewhere.

    Raises `KnobError` if `direct` is set and the file system cannot read past the page cache, `ReadError` if a file cannot
    be opened.
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
        self._alignment = direct_unit() if direct else 1
        self._apart = direct and sys.platform == "darwin"
        self._bandwidth = Bandwidth(gbps)
        self._deliver = deliver
        self._fds: list[int] = []
        self._close_files = weakref.finalize(self, _close, self._fds)  # also runs if the reader is dropped without close()
        self._close_files.atexit = False
        ensure_open_files(len(files), f"a reader of {len(files)} files")
        try:
            for file in files:
                self._fds.append(open_file(file, direct))
                if not direct and hasattr(os, "posix_fadvise"):
                    # Readahead would also read what follows an expert: up to 2.4 times the bytes requested.
                    os.posix_fadvise(self._fds[-1], 0, 0, os.POSIX_FADV_RANDOM)
            memory = [memory_alignment(fd, file) if direct else 1 for fd, file in zip(self._fds, files, strict=True)]
        except Exception:
            self._close_files()
            raise
        self._memory = memory if deliver is None else [0] * len(files)
        self._demand: deque[ExpertLoad | None] = deque()
        self._speculative: deque[ExpertLoad | None] = deque()
        self._ready: queue.SimpleQueue[None] = queue.SimpleQueue()  # one item for each entry of the two queues
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
    ) -> ExpertLoad:
        """Queue the pieces of one expert. `finish` runs in a reader thread when all have arrived. The reads also count for
        layer number `layer`. Raises `ReadError` if the reader is closed."""
        if not self._close_files.alive:
            raise ReadError(f"{label} cannot be read: the reader is closed; load the model again")
        load = ExpertLoad(label, cut(pieces, self._block_bytes, self._alignment), finish, self._bandwidth.clock(), layer)
        self._put(load, self._speculative if speculative else self._demand)
        return load

    def make(self, target: np.ndarray, fill: Callable[[np.ndarray], None]) -> None:
        """Let `fill` write into `target`, or into a copy that `deliver` brings there; for use in `finish`, in its thread."""
        if self._deliver is None:
            fill(target)
        else:
            made = np.empty_like(target)
            fill(made)
            self._deliver(_bytes_of(target), _bytes_of(made))

    def hurry(self, load: ExpertLoad) -> None:
        """Promote the remaining blocks of a speculative load to demand reads."""
        self._put(load, self._demand)

    def close(self) -> None:
        """Finish the demand reads, drop speculative reads that have not begun, end the threads and close the files."""
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

    def _put(self, load: ExpertLoad, entries: deque[ExpertLoad | None]) -> None:
        for _ in range(load.waiting):
            entries.append(load)
            self._ready.put(None)
        while len(self._threads) < self._number:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def _next(self) -> ExpertLoad | None:
        """The load of the next entry, demand reads first; None ends the thread."""
        self._ready.get()
        while True:  # every `get` has an entry, but another thread may take the one seen
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
            if block is None:  # cancelled, or promoted and already read
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
            except Exception as e:  # from `deliver`: must reach the caller and not end the thread
                load.arrived(error=e)
            else:
                self._bandwidth.finish(transferred, load.requested)
                with self._lock:
                    self._stats.count_read(load.layer, transferred)
                load.arrived()

    def _scratch(self) -> memoryview:
        """A thread's memory for bytes that cannot be read straight to their place."""
        nbytes = self._block_bytes + 2 * direct_unit()
        return memoryview(mmap.mmap(-1, nbytes)) if self._deliver is None else self._deliver.staging(nbytes)

    def _read(self, block: Block, scratch: memoryview) -> int:
        """Read one block to its place. Returns the bytes read from the file, including alignment."""
        begin = block.offset // self._alignment * self._alignment
        needed = block.offset + block.nbytes - begin
        transferred = -(-needed // self._alignment) * self._alignment
        least = SEPARATE_BYTES if self._apart else 1
        views, rest = lay_out(block, begin, scratch[:transferred], self._alignment, self._memory[block.file], least)
        read = read_apart if self._apart else read_fully
        read(self._fds[block.file], views, begin, needed, self._alignment)
        for into, source in rest:
            (self._deliver or _copy)(into, source)
        return transferred


def _bytes_of(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _copy(into: memoryview, source: memoryview) -> None:
    np.copyto(np.frombuffer(into, np.uint8), np.frombuffer(source, np.uint8))  # releases the GIL, unlike a memoryview's copy


def _sleep_precisely() -> None:
    """Disable Linux's timer slack for this thread, which delays each sleep by 50 us to save power. macOS has no prctl."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
