"""Reader: opens the files of a checkpoint and owns the native threads that read from them (`engine.native`).

Adjacent ranges of an expert are joined and cut into blocks of at most `read_block_kib`, which the threads read side by side.
Demand reads overtake speculative ones in the queue. `direct` reads past the page cache (`direct`). `ssd_gbps` simulates one
bandwidth over all threads: a read ends no earlier than on a disk of that speed.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine.errors import HeadraceError, ReadError
from engine.native import core
from engine.system.open_files import ensure_open_files

from .direct import SEPARATE_BYTES, direct_unit, memory_alignment, open_file

Failure = tuple[int, int, int, int, int]  # kind (a constant of `core`), code, file, byte, section


class Reader:
    """A pool of `threads` threads that read from the open `files`. They start with the first read. Close it when done.

    `device`: the shared library of the CUDA driver, whose copy engine then brings every byte to its place. `native` is the
    object that pools queue their reads in. `dry`: nothing is opened or read; a load counts its blocks and has arrived.

    Raises `KnobError` if `direct` is set and the file system cannot read past the page cache, `ReadError` if a file cannot
    be opened.
    """

    def __init__(
        self, files: tuple[Path, ...], *, threads: int, block_bytes: int, direct: bool, gbps: float | None,
        device: str | None = None, dry: bool = False,
    ) -> None:  # fmt: skip
        self.files = files
        self._gbps = gbps or 0.0
        apart = direct and sys.platform == "darwin"
        fds: list[int] = []
        if not dry:
            ensure_open_files(len(files), f"a reader of {len(files)} files")
        try:
            for file in () if dry else files:
                fds.append(open_file(file, direct))
                if not direct and hasattr(os, "posix_fadvise"):
                    # Readahead would also read what follows an expert: up to 2.4 times the bytes requested.
                    os.posix_fadvise(fds[-1], 0, 0, os.POSIX_FADV_RANDOM)
            memory = [memory_alignment(fd, file) if direct else 1 for fd, file in zip(fds, files, strict=not dry)]
            self.native = core.Reader(
                fds or [0] * len(files), memory or [1] * len(files), threads, block_bytes, direct_unit() if direct else 1,
                SEPARATE_BYTES if apart else 1, apart, direct_unit(), self._gbps, device, dry,
            )  # fmt: skip
        except Exception as e:
            _close_files(fds)
            if isinstance(e, OSError) and device:
                raise HeadraceError(f"CUDA: {e}; restart the process") from e
            raise
        # Also runs if the reader is dropped, and at the interpreter's exit, when no thread may write to memory any more.
        self._close = weakref.finalize(self, _close, self.native, fds)

    @contextmanager
    def unheld(self) -> Iterator[None]:
        """Read as fast as the disk does inside, whatever `ssd_gbps` is."""
        self.native.limit(0.0)
        try:
            yield
        finally:
            self.native.limit(self._gbps)

    def error(self, what: str, failure: Failure) -> HeadraceError:
        """The error for a failed load of `what`, such as `model.layers.3.mlp expert 7`."""
        kind, code, file, at, _ = failure
        if kind == core.CANCELLED:
            return ReadError(f"{what} was not read: its load was cancelled")
        if kind == core.DEVICE:
            return HeadraceError(f"CUDA: a copy of {what} failed with code {code}; restart the process")
        if kind == core.MEMORY:
            return HeadraceError(f"{what} was not read: there is no memory for the reads; lower read_block_kib or cache_gb")
        reason = os.strerror(code) if kind == core.READ else "unexpected end of file"
        return ReadError(
            f"{self.files[file]}: {what} could not be read at byte {at} ({reason}); check the disk, or copy the checkpoint "
            "again"
        )

    def close(self) -> None:
        """Finish the demand reads, drop speculative reads that have not begun, end the threads and close the files."""
        self.native.close()
        self._close()


def _close(native: core.Reader, fds: list[int]) -> None:
    native.close(True)
    _close_files(fds)


def _close_files(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
