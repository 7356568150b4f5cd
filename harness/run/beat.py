"""Progress signal: a file that changes while the engine works, by which the supervisor distinguishes a hang from a slow run.

Its content is a number that grows, so it also changes on a filesystem that keeps no times.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEAT_S = 1.0  # least time between two beats


class Signal:
    """Makes the empty file `path`, once. Without a path it does nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None

    def __call__(self) -> None:
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.touch()
            self._path = None


class Beat:
    """Changes the file `path`, at most every `BEAT_S`. Without a path it does nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._last = 0.0
        self._count = 0

    def __call__(self) -> None:
        """Report progress."""
        if time.monotonic() - self._last >= BEAT_S:
            self.now()

    def now(self) -> None:
        """Change the file at once."""
        self._last = time.monotonic()
        self._count += 1
        if self._path is not None:
            with contextlib.suppress(OSError):  # a full disk must not end a run
                self._write(self._path)

    def _write(self, path: Path) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:  # in place and of one size, which needs no room on a disk that is full since
            os.pwrite(handle, b"%020d\n" % self._count, 0)
        except OSError:
            os.utime(path)
        finally:
            os.close(handle)

    def watch(self, work: Callable[[], Any]) -> None:
        """Report progress whenever `work()` returns a new value, from a thread: prefill and scoring count too."""
        if self._path is not None:
            threading.Thread(target=self._watch, args=(work,), daemon=True).start()

    def _watch(self, work: Callable[[], Any]) -> None:
        seen = None
        while True:
            time.sleep(BEAT_S)
            now = work()
            if now != seen:
                self()
            seen = now
