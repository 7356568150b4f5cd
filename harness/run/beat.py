"""Progress signal: a file touched while the engine works, by which the supervisor distinguishes a hang from a slow run."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEAT_S = 1.0  # least time between two touches


class Beat:
    """Touches the file `path`, at most every `BEAT_S`. Without a path it does nothing."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None
        self._last = 0.0

    def __call__(self) -> None:
        """Report progress."""
        if time.monotonic() - self._last >= BEAT_S:
            self.now()

    def now(self) -> None:
        """Touch the file at once."""
        self._last = time.monotonic()
        if self._path is not None:
            with contextlib.suppress(OSError):  # a full disk must not end a run
                self._path.touch()

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
