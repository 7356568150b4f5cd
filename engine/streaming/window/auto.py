"""Auto window: chooses between checking every layer and checking once per token, by the measured time of recent tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from math import sqrt
from time import perf_counter

NOISE = 0.05  # least deviation of a token's time that is assumed, as a share of the time


class AutoWindow:
    """Chooses the window size of `sync_window=auto`.

    Which size is faster depends on the miss rate, on the disk and on the cost of a sync on this device. One size is used,
    and from time to time the other is tried. A trial is a sequential test: it ends as soon as the mean times differ by more
    than CLEAR standard errors, so a size that is much slower costs few tokens, or after MOST tokens, where the difference
    matters little. The first trials end after as many tokens as they are compared with. If the other size was faster, LEAST
    more tokens with the size in use must be slower than it, too: while a cache fills, each token is faster than the one
    before. Each trial that confirms the size doubles the time until the next, up to LONGEST tokens; a trial of many tokens
    is followed by at least PAUSE times as many. A change of the size, or of the time that a token takes with it, brings the
    next trial nearer. A token that takes LONG times the mean is not counted, unless it follows another one: something else
    than decoding took that time.
    """

    LEAST, MOST, RECENT = 2, 24, 64  # tokens of a trial, and of the size in use that it is compared with
    FIRST, LONGEST, PAUSE = 64, 512, 8
    CLEAR, CHANGED = 2.5, 4.0  # standard errors
    LONG = 5
    DRIFT = 0.3  # change of a token's time, as a share of it, that texts alone may cause

    def __init__(self, most: int, clock: Callable[[], float] = perf_counter) -> None:
        self._sizes = (1, most)
        self._clock = clock
        self._seconds: tuple[deque[float], deque[float]] = (deque(maxlen=self.RECENT), deque(maxlen=self.RECENT))
        self._used = self._current = 0
        self._again = False  # the other size was faster, and the size in use is timed once more
        self._changed = True  # the next token is the first one with its size
        self._long = False  # the last token was not counted because it was long
        self._wait = self._left = 2 * self.LEAST  # tokens between two trials, and until the next one
        self._level = 0.0  # mean time of a token at the last trial
        self._began: float | None = None

    def size(self, decoding: bool) -> int:
        """Return the window size for the forward pass that starts now; call it at the start of every pass."""
        now, began = self._clock(), self._began
        self._began = now if decoding else None
        if not decoding:
            return self._sizes[1]
        if began is not None:
            if self._changed:  # the first token after a change of size pays for the change
                self._changed = False
            elif self._counts(now - began):
                self._seconds[self._current].append(now - began)
                if self._again or self._current != self._used:
                    self._try()
                else:
                    self._use()
        return self._sizes[self._current]

    def _counts(self, seconds: float) -> bool:
        """Return whether a token's time is that of decoding."""
        known = [*self._seconds[0], *self._seconds[1]]
        self._long = bool(known) and not self._long and seconds > self.LONG * sum(known) / len(known)
        return not self._long

    def _use(self) -> None:
        """Count a token with the size in use; begin a trial when it is time, or when the tokens' time has changed."""
        self._left -= 1
        own = self._seconds[self._used]
        if self._level and len(own) == self.RECENT and self._left > 0:
            mean, noise = _spread(own)
            least = max(self.CHANGED * noise * sqrt(2 / self.RECENT), self.DRIFT * self._level)
            if abs(mean - self._level) > least:
                self._left, self._wait = 0, self.FIRST
        if self._left <= 0:
            self._seconds[1 - self._used].clear()
            self._current, self._changed = 1 - self._used, True

    def _try(self) -> None:
        """Count a token of a trial, and end the trial if its result is clear or it has taken long enough."""
        own, other = self._seconds[self._used], self._seconds[1 - self._used]
        if len(self._seconds[self._current]) < self.LEAST:
            return
        (used, noise), (new, own_noise) = _spread(own), _spread(other)
        tried = len(other)
        if tried > self.LEAST:  # the deviation of fewer tokens says little
            noise = max(noise, own_noise)
        if not self._again:
            if tried < min(self.MOST, len(own)) and abs(used - new) <= self.CLEAR * noise * sqrt(1 / len(own) + 1 / tried):
                return
            if new < used:
                own.clear()
                self._again, self._current, self._changed = True, self._used, True
                return
        if new < used:
            self._used, self._wait = 1 - self._used, self.FIRST
        else:
            self._wait = min(max(self.FIRST, 2 * self._wait), self.LONGEST)
        self._again, self._changed, self._current = False, self._current != self._used, self._used
        self._left = max(self._wait, self.PAUSE * tried)
        self._level = min(used, new)


def _spread(seconds: Collection[float]) -> tuple[float, float]:
    """Mean and standard deviation of token times; the deviation is at least NOISE of the mean."""
    mean = sum(seconds) / len(seconds)
    return mean, max(NOISE * mean, sqrt(sum((s - mean) ** 2 for s in seconds) / len(seconds)))
