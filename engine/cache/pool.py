"""Slot pool: loads experts into slots on demand and on speculation, and evicts others for them.

A layer has one pool for each width of its experts. Reads run in the reader's threads; the pool keeps the loads under way and
waits for them before an expert is computed with.
"""

from __future__ import annotations

import contextlib
import functools
from time import perf_counter
from typing import Any

import mlx.core as mx
import numpy as np

from engine.checkpoint.experts import ExpertLayer
from engine.disk.load import ExpertLoad
from engine.disk.reader import Reader
from engine.errors import ReadError
from engine.stats import Stats

from .eviction import SlotTable
from .slot_layout import Requantize
from .slots import Slots

FILL_AT_ONCE = 32  # experts; each may need staging memory


class SlotPool:
    """The slots of `table`, for experts of one layer at one width, behind the switch module `inner`.

    `inner`, `requantize` and `compute` are those of `Slots`. `stats` counts the reads for the layer `number`. `verify`:
    compare the checksums of every expert read, and raise `ReadError` instead of computing with a damaged one.
    """

    def __init__(
        self,
        layer: ExpertLayer,
        table: SlotTable,
        inner: Any,
        requantize: dict[str, Requantize],
        *,
        compute: mx.Dtype | None,
        stats: Stats,
        number: int | None = None,
        verify: bool = False,
    ) -> None:
        self.layer = layer
        self.table = table
        self.inner = inner
        self.changed = True  # slot_of differs from the device's copy
        self._slots = Slots(layer, table.members, table.slots, inner, requantize, compute)
        self._requantizes = bool(requantize)
        self._stats = stats
        self._number = number
        self._records = layer.records if verify else None
        self._coming: dict[int, tuple[ExpertLoad, bytearray]] = {}  # expert -> its load and staging memory

    @property
    def holds_all(self) -> bool:
        """Whether there is a slot for every member."""
        return self.table.slots == len(self.table.members)

    @property
    def settled(self) -> bool:
        """Whether no read is under way."""
        return not self._coming

    def take_in(self) -> None:
        """Settle the reads that have ended."""
        for expert in [e for e, (load, _) in self._coming.items() if load.ended is not None]:
            with contextlib.suppress(ReadError):  # no token needs it yet; the next request reads it again
                self.settle(np.array([expert]))

    def waits_for(self, experts: np.ndarray) -> bool:
        """Whether reads of one of `experts` are under way."""
        return bool(self._coming) and not self._coming.keys().isdisjoint(experts.tolist())

    def fill(self, experts: np.ndarray, reader: Reader) -> None:
        """Load `experts` into free slots, in their order, a few at a time; before the first token."""
        for begin in range(0, len(experts), FILL_AT_ONCE):
            some = experts[begin : begin + FILL_AT_ONCE]
            self.request(some, reader)
            self.settle(some)

    def request(
        self, experts: np.ndarray, reader: Reader, keep: np.ndarray | None = None, *, speculative: bool = False
    ) -> None:
        """Assign slots to `experts` (distinct members, at most as many as there are slots) and queue the missing reads.

        Neither `experts` nor `keep`, the experts of outputs that are not computed yet, are evicted. `speculative` reads wait
        for all others; a later request without it promotes them.
        """
        kept = experts if keep is None else np.union1d(experts, keep)
        if self.table.guessed:
            self._count_useful(self.table.guessed.keys() & set(experts.tolist()))
        for expert in self._coming.keys() & set(experts.tolist()):
            if self._coming[expert][0].failed:  # left by an earlier pass that another error ended: read it again
                del self._coming[expert]
                self.table.free(expert)
                self.changed = True
            elif not speculative:
                reader.hurry(self._coming[expert][0])
        for expert, slot, victim in self.table.demand(experts, kept):
            if victim in self._coming:
                load, _ = self._coming.pop(victim)
                load.cancel()
                load.join()  # reads that have begun still write into the slot
            self._queue(expert, slot, reader, speculative=speculative)

    def settle(self, experts: np.ndarray) -> None:
        """Wait until all of `experts` are in their slots. Raises `ReadError` if one cannot be read."""
        coming = sorted(self._coming.keys() & set(experts.tolist()))
        if not coming:
            return
        with self._stats.timed("io_ms"):
            for expert in coming:
                self._coming[expert][0].join()
        failures = []
        for expert in coming:
            load, staging = self._coming.pop(expert)
            try:
                load.wait()
            except Exception as e:  # the slot's content must not count as a hit later
                failures.append(e)
                self.table.free(expert)
                self.changed = True
                continue
            if self._requantizes:
                with self._stats.timed("quantize_ms"):
                    self._slots.quantize_into(int(self.table.slot_of[expert]), staging)
        if failures:
            raise failures[0]

    def guess(self, experts: np.ndarray, time: int, reader: Reader) -> None:
        """Start to read those of `experts` that are missing, predicted for token `time`.

        Never evicts a warmer expert, nor one whose reads are under way.
        """
        for expert in map(int, experts):
            if self.table.slot_of[expert] >= 0:
                continue
            placed = self.table.guess(expert, time, np.array([*experts, *self._coming], np.int64))
            if placed is not None:
                self._queue(expert, placed[0], reader, speculative=True)
                self._stats.prefetch_issued += 1
                self._stats.prefetch_bytes += self.layer.expert_bytes

    def forget(self) -> None:
        """Free all slots that are not pinned."""
        for load, _ in self._coming.values():
            load.cancel()
        for load, _ in self._coming.values():
            load.join()  # reads that have begun still write into their slots
        self._coming.clear()
        self.table.clear()
        self.changed = True

    def _count_useful(self, experts: set[int]) -> None:
        """Count predicted experts that are now used, and the time their reads have run so far."""
        now = perf_counter()
        loads = [self._coming[e][0] for e in experts if e in self._coming]
        begun = [load.begun for load in loads if load.begun is not None]
        if begun:
            ended = max(now if load.ended is None else load.ended for load in loads)
            self._stats.prefetch_hidden_ms += (ended - min(begun)) * 1e3
        self._stats.prefetch_useful += len(experts)
        self._stats.prefetch_useful_bytes += len(experts) * self.layer.expert_bytes
        for expert in experts:
            del self.table.guessed[expert]

    def _queue(self, expert: int, slot: int, reader: Reader, *, speculative: bool) -> None:
        self.changed = True
        pieces, sections, conversions, staging = self._slots.arrival(expert, slot, reader)
        if self._records is not None:
            conversions.insert(0, functools.partial(self._records.verify, expert, sections))

        def finish() -> None:
            for convert in conversions:
                convert()

        load = reader.submit(
            pieces,
            f"{self.layer.block} expert {expert}",
            speculative=speculative,
            finish=finish if conversions else None,
            layer=self._number,
        )
        self._coming[expert] = (load, staging)
