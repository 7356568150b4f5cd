"""Auto window: chooses between checking every layer and checking once per token, by the measured time of recent tokens."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter


class AutoWindow:
    """Chooses the window size of `sync_window=auto`.

    Which size is faster depends on the miss rate, on the disk and on the cost of a sync on this device. Both sizes are
    therefore tried on TRIED tokens each, and the faster one is used until PERIOD tokens have passed; then both are tried
    again.
    """

    TRIED, PERIOD = 4, 64

    def __init__(self, most: int, clock: Callable[[], float] = perf_counter) -> None:
        self._sizes = (1, most)
        self._clock = clock
        self._token = 0
        self._seconds = [0.0, 0.0]
        self._began: float | None = None

    def size(self, decoding: bool) -> int:
        """Return the window size for the forward pass that starts now; call it at the start of every pass."""
        now, began = self._clock(), self._began
        self._began = now if decoding else None
        if not decoding:
            return self._sizes[1]
        if began is not None:
            which, at = divmod(self._token, self.TRIED)
            if which < 2 and at > 0:  # the first token after a change of size pays for the change
                self._seconds[which] += now - began
            self._token += 1
            if self._token == self.PERIOD:
                self._token, self._seconds = 0, [0.0, 0.0]
        which = self._token // self.TRIED
        return self._sizes[which if which < 2 else int(self._seconds[1] < self._seconds[0])]
