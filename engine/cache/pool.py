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
from engine.errors import HeadraceError
from engine.native import core
from engine.stats import Stats

from .eviction import NO_EXPERTS
from .requests import PoolRequests, pinned_flags
from .slot_layout import Requantize
from .slots import Slots, host_view


class SlotPool(PoolRequests):
    """`slots` slots for the experts `members` of one layer at one width, behind the switch module `inner`.

    `shared` is the layer's native object, which its pools share, and `pinned` the experts that are never evicted.
    `inner`, `requantize` and `compute` are those of `Slots`. `verify`: compare the checksums of every expert read, and raise
    `ReadError` instead of computing with a damaged one.
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
        count = min(slots, len(members))
        self.inner = inner
        self._slot_of = slot_of
        self._slots = Slots(layer, members, count, inner, requantize, compute)
        self.has_scales = self._slots.has_scales
        self._reader = reader
        self._records = layer.records if verify else None
        self._choice = mx.array([], dtype=mx.int32)
        self._choice_memory = host_view(self._choice)
        native = core.Pool(
            shared, reader.native, count, pinned_flags(pinned, len(slot_of)), self._slots.sources(), self._slots.made(),
            self._slots.staging_bytes, bool(requantize),
            None if self._records is None else np.ascontiguousarray(self._records.checksums),
        )  # fmt: skip
        super().__init__(
            native, members, slots, pinned, stats, block=layer.block, expert_bytes=layer.expert_bytes, decodes=not requantize
        )

    def release(self) -> Any:
        """Give the slots' memory back and return the switch module without weights. The pool cannot be used afterwards; its
        reader is closed, and no queued graph reads the slots."""
        self._slots.release(self.inner)
        del self._slots, self._native
        return self.inner

    def decode(self, ids: mx.array, time: int) -> mx.array:
        """Bring the experts `ids` (evaluated, [..., top-k]) of one token into slots, as `decode_into` does.

        Returns the slot numbers, int32 [..., top-k], in an array that the next call overwrites: like the slots, it must not
        be overwritten while a queued graph may still read it."""
        if self._choice.shape != ids.shape:
            self._choice = mx.zeros(ids.shape, mx.int32)
            mx.eval(self._choice)
            self._choice_memory = host_view(self._choice)
        self.decode_into(ids, time, self._choice_memory)
        return self._choice

    def take_in(self) -> None:
        """Settle the reads that have ended, and quantize what arrived."""
        super().take_in()
        self._quantize()

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

    def _error(self, expert: int, failure: Failure) -> HeadraceError:
        what = f"{self._block} expert {expert}"
        if failure[0] == core.CHECKSUM and self._records is not None:
            return self._records.damaged(expert, failure[4])
        return self._reader.error(what, failure)
