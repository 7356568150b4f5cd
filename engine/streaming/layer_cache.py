"""Layer cache: the cached experts of one layer, in one slot pool per width, and the computation on them.

mlx-lm's own switch module computes on slot numbers instead of expert numbers, with the same kernel
(`engine.model.kernel_choice`), so the result equals the resident model's to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import mlx.core as mx
import numpy as np

from engine.cache.layer_pools import LayerPools, nothing
from engine.cache.pool import SlotPool
from engine.model.backend import backend
from engine.model.kernel_choice import parts_alike

LEFT_OUT = -1  # in place of an expert that a token does not use

Batch = tuple[SlotPool, np.ndarray]


class LayerCache(LayerPools[SlotPool]):
    """The slot pools of one layer (see `LayerPools`), with their computation."""

    def __init__(self, pools: list[SlotPool], slot_of: np.ndarray) -> None:
        super().__init__(pools, slot_of)
        self._is_second = mx.array(self.pool_of == 1)
        self._tables: list[mx.array] = []
        self._is_cached: mx.array | None = None
        self._backend = backend()

    def reset(self) -> None:
        """Restore the content after loading. No queued graph may still read the slots."""
        if not self.complete:
            for pool in self.pools:
                pool.forget()

    def waits_for(self, experts: np.ndarray) -> bool:
        """Return whether reads of any of `experts` are in progress."""
        return any(pool.waits_for(experts) for pool in self.pools)

    def take_in(self) -> bool:
        """Settle the reads that have finished; return whether no read of this layer remains in progress."""
        for pool in self.pools:
            pool.take_in()
        return all(pool.settled for pool in self.pools)

    def on_device(self, x: mx.array, indices: mx.array) -> mx.array:
        """Compute with the expert-to-slot table on the device, without a sync.

        The output of a missing expert is 0. The layers after it then predict more of their own choices than they would with
        another expert's output in its place.
        """
        if not self._tables or any(pool.changed for pool in self.pools):
            slots = np.maximum(self.slot_of, 0)
            self._tables = [mx.array(np.where(self.pool_of == n, slots, 0)) for n in range(len(self.pools))]
            self._is_cached = None if self.complete else mx.array(self.slot_of >= 0)
            for pool in self.pools:
                pool.changed = False
        outputs = [pool.inner(x, table[indices]) for pool, table in zip(self.pools, self._tables, strict=True)]
        y = outputs[0] if len(outputs) == 1 else mx.where(self._is_second[indices][..., None], outputs[1], outputs[0])
        return y if self._is_cached is None else mx.where(self._is_cached[indices][..., None], y, 0)

    def on_host(self, x: mx.array, ids: np.ndarray, meanwhile: Callable[[], None] = nothing) -> mx.array:
        """Compute the choice `ids` [..., top-k]: read missing experts, then use their slot numbers.

        `meanwhile` runs once the missing experts are requested, before the wait for them.
        """
        used = ids[ids != LEFT_OUT]
        batches, one_token = self.batches(used), ids.size == ids.shape[-1]
        arrivals = self.arrivals(batches, one_token=one_token, meanwhile=meanwhile)
        whole = len(batches) == 1 and len(used) == ids.size
        if whole and (one_token or self._parts(batches[0][0], ids.size, ids.size)[0] == 1):
            ((pool, _),) = arrivals
            return pool.inner(x, mx.array(self.slot_of[ids]))
        if len(batches) == len(self.pools) and one_token:
            return self._at_two_widths(x, ids, arrivals)
        return self._in_batches(x, ids, arrivals)

    def _parts(self, pool: SlotPool, rows: int, total: int) -> tuple[int, int]:
        """See `parts_alike`."""
        if self._backend == "cpu":
            return 1, 0
        return parts_alike(
            self._backend, rows, total, experts=len(pool.members), slots=min(pool.slots, len(pool.members)),
            quantized=pool.has_scales,
        )  # fmt: skip

    def _at_two_widths(self, x: mx.array, ids: np.ndarray, arrivals: Iterator[Batch]) -> mx.array:
        """Compute one token's experts when both pools have some of them and all of them fit."""
        flat, outputs, places = ids.reshape(-1), [], []
        for number, (pool, _) in enumerate(arrivals):
            own = np.flatnonzero(self.pool_of[flat] == number)
            slots = self.slot_of[flat[own]].reshape(*ids.shape[:-1], -1)
            outputs.append(pool.inner(x, mx.array(slots)))
            places.append(own)
        return mx.concatenate(outputs, axis=-2)[..., mx.array(np.argsort(np.concatenate(places))), :]

    def _in_batches(self, x: mx.array, ids: np.ndarray, arrivals: Iterator[Batch]) -> mx.array:
        """Compute each batch on the rows that use its experts, then restore the rows' order; experts left out give 0."""
        flat_x, flat_ids = x.reshape(-1, x.shape[-1]), ids.reshape(-1)
        outputs, order = [], []
        for pool, experts in arrivals:
            rows = np.flatnonzero(np.isin(flat_ids, experts))
            count, least = self._parts(pool, len(rows), ids.size)
            made = []
            for part in np.array_split(rows, count):
                filled = np.pad(part, (0, least - len(part)), mode="edge") if len(part) < least else part
                tokens = mx.array(filled // ids.shape[-1])
                y = pool.inner(flat_x[tokens], mx.array(self.slot_of[flat_ids[filled]])[:, None])
                made.append(y[: len(part), 0])
            mx.eval(made)  # before the pool's slots are overwritten
            outputs += made
            order.append(rows)
        computed = np.concatenate(order)
        if len(computed) < ids.size:
            outputs.append(mx.zeros((1, outputs[0].shape[-1]), outputs[0].dtype))
        back = np.full(ids.size, len(computed))
        back[computed] = np.arange(len(computed))
        return mx.concatenate(outputs)[mx.array(back)].reshape(*ids.shape, -1)
