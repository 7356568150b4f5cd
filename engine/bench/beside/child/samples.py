"""Samples: where the main thread is while it decodes, by room of the engine.

A timer interrupts the main thread, so no second thread competes for the interpreter lock. Python handles the signal after
the C call that was running, at its line; a sample therefore has the weight of the time since the one before.
"""

from __future__ import annotations

import linecache
import signal
import time
from collections import defaultdict
from pathlib import Path
from types import FrameType, TracebackType

INTERVAL_S = 0.001
DECODING = ("decode", "_decode")  # functions around the pass of a token
EVAL, WAIT, MODEL, OTHER = "mlx eval", "waiting for reads", "mlx-lm", "other"
# Rooms of modules that once stood at the engine's root.
FLAT = {
    "switch": "streaming", "window": "streaming", "prefetch": "streaming", "gates": "streaming", "engine": "streaming",
    "slots": "cache", "evict": "cache", "nesting": "cache", "reader": "disk", "bandwidth": "disk", "cuda": "disk",
    "measuring": "measure", "trace": "routing",
}  # fmt: skip


class Samples:
    """Takes samples within `with`; only in the main thread. `root` is the checkout's folder."""

    def __init__(self, root: Path) -> None:
        self._engine = f"{root / 'engine'}/"
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last = 0.0
        self._busy = False
        self._before: object = None

    def __enter__(self) -> Samples:
        self._last = time.perf_counter()
        self._before = signal.signal(signal.SIGALRM, self._sample)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL_S, INTERVAL_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)  # type: ignore[arg-type]

    @property
    def shares(self) -> dict[str, float]:
        """Share of the decoding time in each place; they add up to 1."""
        total = sum(self._seconds.values())
        return {place: seconds / total for place, seconds in self._seconds.items()}

    def place(self, frame: FrameType | None) -> str:
        """The innermost room of the engine or library among the frames; empty outside of decoding."""
        found, threading = "", False
        while frame is not None:
            code = frame.f_code
            if not found:
                threading |= code.co_filename.endswith("/threading.py")
                found = self._place(code.co_filename, frame.f_lineno, threading)
            if code.co_name in DECODING and code.co_filename.startswith(self._engine):
                return found or OTHER
            frame = frame.f_back
        return ""

    def _place(self, file: str, line: int | None, threading: bool) -> str:
        if file.startswith(self._engine) and file != __file__:
            text = linecache.getline(file, line or 0)
            if "eval(" in text:
                return EVAL
            if threading or "wait(" in text:
                return WAIT
            room = file.removeprefix(self._engine).partition("/")
            name = room[0].removesuffix(".py")
            return name if room[1] else FLAT.get(name, name)
        return MODEL if "/mlx_lm/" in file or "/mlx/" in file else ""

    def _sample(self, _: int, frame: FrameType | None) -> None:
        if self._busy:  # a sample took longer than the interval
            return
        self._busy, now = True, time.perf_counter()
        if place := self.place(frame):
            self._seconds[place] += now - self._last
        self._last, self._busy = time.perf_counter(), False
