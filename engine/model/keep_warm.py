"""Keep-warm: a small matrix product every half millisecond while tokens are decoded, so that the GPU keeps its clock.

A streaming engine leaves the GPU idle for milliseconds at each read, and Apple's GPUs then lower their clock. Users of other
engines report +32 to +45 % tokens/s (gmlx). The product runs in a thread and on a stream of its own and changes no result.
It costs power, and the thread takes the interpreter's lock for some microseconds each time.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import mlx.core as mx

SIZE = 256
PAUSE_S = 0.0005
LEASE_S = 1.0  # the products end this long after the last token


class KeepWarm:
    """The thread of the products on a device. It works after `touch()` for `LEASE_S`, and ends with `close()`."""

    def __init__(self, device: Any) -> None:
        self.products = 0
        self._device = device
        self._until = 0.0
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="gpu_keep_warm", daemon=True)
        self._thread.start()

    def touch(self) -> None:
        """A token is being decoded."""
        self._until = time.monotonic() + LEASE_S
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """End the thread and wait for it."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    @property
    def working(self) -> bool:
        """Whether products are being computed."""
        return self._wake.is_set() and not self._closed

    def _work(self) -> None:
        stream = mx.new_stream(self._device)
        with mx.stream(stream):
            matrix = mx.ones((SIZE, SIZE), mx.float32)
            mx.eval(matrix)
            while self._wake.wait() and not self._closed:
                if time.monotonic() > self._until:
                    self._wake.clear()
                    continue
                mx.eval(matrix @ matrix)
                self.products += 1
                time.sleep(PAUSE_S)
