"""Writer: a thread that saves prefixes once the server has been idle for a moment, apart from any request.

An agent sends its next turn at once, and the longer prefix then replaces the one that waits. Under constant load a prefix
waits at most `MOST_S`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

IDLE_S, MOST_S, STEP_S = 1.0, 30.0, 0.2


class Writer:
    """`save` is called on the writer's thread, one entry at a time. `busy` says whether a request is being computed."""

    def __init__(self, save: Callable[[Any], None], busy: Callable[[], bool]) -> None:
        self.current: Any = None  # the entry being written
        self._save = save
        self._busy = busy
        self._waiting: dict[Any, float] = {}  # entry -> time of its insertion, oldest first
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="prompt-cache-writer", daemon=True)
        self._thread.start()

    def add(self, entry: Any) -> None:
        with self._changed:
            self._waiting[entry] = time.monotonic()
            self._changed.notify()

    def discard(self, entry: Any) -> None:
        """Forget an entry that is not yet being written."""
        with self._changed:
            self._waiting.pop(entry, None)

    def close(self, timeout: float) -> None:
        """Write what waits, for at most `timeout` seconds, and end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._ready():
                    if self._closing and not self._waiting:
                        return
                    self._changed.wait(STEP_S if self._waiting else None)
                self.current = next(iter(self._waiting))
                del self._waiting[self.current]
            try:
                self._save(self.current)
            finally:
                self.current = None

    def _ready(self) -> bool:
        if not self._waiting:
            return False
        ages = [time.monotonic() - then for then in self._waiting.values()]
        return self._closing or ages[0] > MOST_S or (ages[-1] > IDLE_S and not self._busy())
