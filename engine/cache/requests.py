"""Requests: what is asked of one slot pool and what it counts, whether its slots have memory or not.

`SlotPool` adds the memory. A replay (`engine.replay`) uses the requests alone, with a dry reader, so that both make the same
choices and count the same blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from engine.errors import ReadError
from engine.native import core
from engine.stats import Stats

FILL_AT_ONCE = 32  # experts; each may need staging memory


class PoolRequests:
    """The requests to a native pool of `slots` slots for the experts `members` of one layer at one width.

    `block` names the layer and `expert_bytes` are the bytes of one expert on the disk. `loose` is the number of slots that
    are not `pinned`. `decodes`: `decode` can serve, since nothing is quantized on arrival.
    """

    def __init__(
        self, native: core.Pool, members: np.ndarray, slots: int, pinned: np.ndarray, stats: Stats, *, block: str,
        expert_bytes: int, decodes: bool = True,
    ) -> None:  # fmt: skip
        self.members = members
        self.slots = min(slots, len(members))
        self.loose = self.slots - len(pinned)
        self.decodes = decodes
        self._native = native
        self._stats = stats
        self._block = block
        self._expert_bytes = expert_bytes
        self._useful = 0, 0.0

    @property
    def holds_all(self) -> bool:
        """Whether there is a slot for every member."""
        return self.slots == len(self.members)

    @property
    def settled(self) -> bool:
        """Whether no read is under way."""
        return bool(self._native.settled)

    @property
    def changed(self) -> bool:
        """Whether slot_of differs from the device's copy; the caller that copies it sets this to False."""
        return bool(self._native.changed)

    @changed.setter
    def changed(self, value: bool) -> None:
        self._native.changed = value

    @property
    def guessed(self) -> list[int]:
        """The experts that were read speculatively and not used yet."""
        return list(self._native.guessed())

    def decode_into(self, ids: Any, time: int, slots: np.ndarray) -> None:
        """Bring the experts `ids` of one token into slots: counts the uses at `time`, hits and misses, evicts, reads and
        waits. Writes the slot numbers (int32) into `slots`. Raises `ReadError`."""
        try:
            waited_ms = self._native.decode(ids, time, slots)
        except core.ReaderClosed as e:
            raise self._closed() from e
        if waited_ms is not None:
            self._ended(waited_ms)

    def waits_for(self, experts: np.ndarray) -> bool:
        """Whether reads of one of `experts` are under way."""
        return bool(self._native.waits_for(experts))

    def take_in(self) -> None:
        """Settle the reads that have ended. A failed one is dropped: the next request reads it again."""
        self._native.take_in()

    def fill(self, experts: np.ndarray, ended: Callable[[], bool] = lambda: False) -> None:
        """Load `experts` into free slots, in their order, a few at a time until `ended()`; before the first token."""
        for begin in range(0, len(experts), FILL_AT_ONCE):
            if ended():
                return
            some = experts[begin : begin + FILL_AT_ONCE]
            self.request(some)
            self.settle(some)

    def request(self, experts: np.ndarray, keep: np.ndarray | None = None, *, speculative: bool = False) -> int:
        """Assign slots to `experts` (members, at most as many as there are slots), queue the missing reads and return their
        number.

        Neither `experts` nor `keep`, the experts of outputs that are not computed yet, are evicted. `speculative` reads wait
        for all others; a later request without it promotes them.
        """
        try:
            queued = self._native.request(experts, keep, speculative)
        except core.ReaderClosed as e:
            raise self._closed() from e
        self._count_useful()
        return queued

    def settle(self, experts: np.ndarray) -> None:
        """Wait until all of `experts` are in their slots. Raises `ReadError` if one cannot be read."""
        self._ended(self._native.settle(experts))

    def guess(self, experts: np.ndarray, time: int) -> int:
        """Start to read those of `experts` that are missing, predicted for token `time`, and return their number.

        Never evicts a warmer expert, nor one whose reads are under way.
        """
        try:
            issued = self._native.guess(experts, time)
        except core.ReaderClosed as e:
            raise self._closed() from e
        self._stats.prefetch_issued += issued
        self._stats.prefetch_bytes += issued * self._expert_bytes
        return issued

    def withdraw(self, experts: np.ndarray) -> None:
        """Withdraw the speculative reads of all but `experts` that have not begun, and free their slots."""
        self._native.withdraw(experts)

    def forget(self) -> None:
        """Free all slots that are not pinned."""
        self._native.forget()

    @property
    def dry(self) -> bool:
        """Whether experts get slots without being read."""
        return bool(self._native.dry)

    @dry.setter
    def dry(self, value: bool) -> None:
        self._native.dry = value

    def owed(self) -> list[tuple[int, int, int]]:
        """File, offset and number of each expert whose slot lacks its bytes, because it was placed while `dry`."""
        return self._native.owed()

    def fetch(self, expert: int) -> None:
        """Queue the reads of an expert that is `owed`; `settle` it afterwards."""
        try:
            self._native.fetch(expert)
        except core.ReaderClosed as e:
            raise self._closed() from e

    def disown(self) -> None:
        """Take the slots of the experts that are `owed`."""
        self._native.disown()

    def _ended(self, waited_ms: float) -> None:
        """Count the wait of a native call."""
        self._stats.io_ms += waited_ms

    def _count_useful(self) -> None:
        """Count predicted experts that are now used, and the time that their reads had run."""
        useful, hidden_ms = self._native.useful
        before, hidden_before = self._useful
        self._useful = useful, hidden_ms
        self._stats.prefetch_useful += useful - before
        self._stats.prefetch_useful_bytes += (useful - before) * self._expert_bytes
        self._stats.prefetch_hidden_ms += hidden_ms - hidden_before

    def _closed(self) -> ReadError:
        return ReadError(f"experts of {self._block} cannot be read: the reader is closed; load the model again")


def pinned_flags(pinned: np.ndarray, experts: int) -> np.ndarray:
    """uint8 [experts]: 1 for an expert that is never evicted, as `engine.native` takes it."""
    flags = np.zeros(experts, np.uint8)
    flags[pinned] = 1
    return flags
