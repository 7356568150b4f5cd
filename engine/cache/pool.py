"""Slot pool: loads experts into slots on demand and on speculation, and evicts others for them.

A layer has one pool for each width of its experts. The slots, the eviction and the reads under way are kept by
`engine.native`, without the interpreter lock; `eviction` is the specification of what it does. Here is what needs MLX, and
the errors.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from engine.checkpoint.experts import ExpertLayer
from engine.disk.reader import Failure, Reader
from engine.errors import HeadraceError, ReadError
from engine.native import core
from engine.stats import Stats

from .eviction import NO_EXPERTS
from .slot_layout import Requantize
from .slots import Slots, host_view

FILL_AT_ONCE = 32  # experts; each may need staging memory


class SlotPool:
    """`slots` slots for the experts `members` of one layer at one width, behind the switch module `inner`.

    `shared` is the layer's native object, which its pools share, and `pinned` the experts that are never evicted.
    `inner`, `requantize` and `compute` are those of `Slots`. `loose` is the number of slots that are not pinned. `verify`:
    compare the checksums of every expert read, and raise `ReadError` instead of computing with a damaged one.
    """

    def __init__(
        self,
        layer: ExpertLayer,
        shared: core.Layer,
        slot_of: np.ndarray,
        members: np.ndarray,
        slots: int,
        inner: Any,
        requantize: dict[str, Requantize],
        reader: Reader,
        *,
        compute: mx.Dtype | None,
        stats: Stats,
        pinned: np.ndarray = NO_EXPERTS,
        verify: bool = False,
    ) -> None:
        self.layer = layer
        self.members = members
        self.slots = min(slots, len(members))
        self.loose = self.slots - len(pinned)
        self.inner = inner
        self.decodes = not requantize  # whether `decode` can serve
        self._slot_of = slot_of
        self._slots = Slots(layer, members, self.slots, inner, requantize, compute)
        self._stats = stats
        self._reader = reader
        self._records = layer.records if verify else None
        self._choice = mx.array([], dtype=mx.int32)
        self._choice_memory = host_view(self._choice)
        self._useful = 0, 0.0
        fixed = np.zeros(len(slot_of), np.uint8)
        fixed[pinned] = 1
        self._native = core.Pool(
            shared, reader.native, self.slots, fixed, self._slots.sources(), self._slots.made(), self._slots.staging_bytes,
            bool(requantize), None if self._records is None else np.ascontiguousarray(self._records.checksums),
        )  # fmt: skip

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

    def decode(self, ids: mx.array, time: int) -> mx.array:
        """Bring the experts `ids` (evaluated, [..., top-k]) of one token into slots: counts the uses at `time`, hits and
        misses, evicts, reads and waits. Raises `ReadError`.

        Returns the slot numbers, int32 [..., top-k], in an array that the next call overwrites: like the slots, it must not
        be overwritten while a queued graph may still read it."""
        if self._choice.shape != ids.shape:
            self._choice = mx.zeros(ids.shape, mx.int32)
            mx.eval(self._choice)
            self._choice_memory = host_view(self._choice)
        try:
            waited_ms = self._native.decode(ids, time, self._choice_memory)
        except core.ReaderClosed as e:
            raise self._closed() from e
        if waited_ms is not None:
            self._ended(waited_ms)
        return self._choice

    def take_in(self) -> None:
        """Settle the reads that have ended. A failed one is dropped: the next request reads it again."""
        self._native.take_in()
        self._quantize()

    def waits_for(self, experts: np.ndarray) -> bool:
        """Whether reads of one of `experts` are under way."""
        return bool(self._native.waits_for(experts))

    def fill(self, experts: np.ndarray) -> None:
        """Load `experts` into free slots, in their order, a few at a time; before the first token."""
        for begin in range(0, len(experts), FILL_AT_ONCE):
            some = experts[begin : begin + FILL_AT_ONCE]
            self.request(some)
            self.settle(some)

    def request(self, experts: np.ndarray, keep: np.ndarray | None = None, *, speculative: bool = False) -> None:
        """Assign slots to `experts` (members, at most as many as there are slots) and queue the missing reads.

        Neither `experts` nor `keep`, the experts of outputs that are not computed yet, are evicted. `speculative` reads wait
        for all others; a later request without it promotes them.
        """
        try:
            self._native.request(experts, keep, speculative)
        except core.ReaderClosed as e:
            raise self._closed() from e
        self._count_useful()

    def settle(self, experts: np.ndarray) -> None:
        """Wait until all of `experts` are in their slots. Raises `ReadError` if one cannot be read."""
        self._ended(self._native.settle(experts))

    def guess(self, experts: np.ndarray, time: int) -> None:
        """Start to read those of `experts` that are missing, predicted for token `time`.

        Never evicts a warmer expert, nor one whose reads are under way.
        """
        try:
            issued = self._native.guess(experts, time)
        except core.ReaderClosed as e:
            raise self._closed() from e
        self._stats.prefetch_issued += issued
        self._stats.prefetch_bytes += issued * self.layer.expert_bytes

    def forget(self) -> None:
        """Free all slots that are not pinned."""
        self._native.forget()

    def _ended(self, waited_ms: float) -> None:
        """Count the wait of a native call and quantize what arrived. -1: raise the first error."""
        self._quantize()
        if waited_ms < 0:
            expert, failure = self._native.failures()[0]
            raise self._error(expert, failure)
        self._stats.io_ms += waited_ms

    def _quantize(self) -> None:
        if self.decodes:
            return
        for expert in self._native.arrived():
            with self._stats.timed("quantize_ms"):
                self._slots.quantize_into(int(self._slot_of[expert]), self._native.staging(expert))

    def _count_useful(self) -> None:
        """Count predicted experts that are now used, and the time that their reads had run."""
        useful, hidden_ms = self._native.useful
        before, hidden_before = self._useful
        self._useful = useful, hidden_ms
        self._stats.prefetch_useful += useful - before
        self._stats.prefetch_useful_bytes += (useful - before) * self.layer.expert_bytes
        self._stats.prefetch_hidden_ms += hidden_ms - hidden_before

    def _error(self, expert: int, failure: Failure) -> HeadraceError:
        what = f"{self.layer.block} expert {expert}"
        if failure[0] == core.CHECKSUM and self._records is not None:
            return self._records.damaged(expert, failure[4])
        return self._reader.error(what, failure)

    def _closed(self) -> ReadError:
        return ReadError(f"experts of {self.layer.block} cannot be read: the reader is closed; load the model again")
