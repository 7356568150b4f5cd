"""Dry run: repeats recorded passes through the engine's own slots, prefetch and batches, with a reader that reads nothing.

No rule is written here a second time. Slots and eviction are the native ones, batches are those of `LayerPools`, predictions
go through `Prefetch`, and the reader cuts each load into the blocks that a real one would read, and counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine.cache.layer_pools import LayerPools
from engine.cache.requests import PoolRequests, pinned_flags
from engine.disk.reader import Reader
from engine.knobs import Knobs
from engine.native import core
from engine.routing.traces.ahead import experts_predicted
from engine.routing.traces.recording import Pass, Recording
from engine.stats import BYTES, HITS, LAYERS_MISSED, MISSES, READS, Stats
from engine.streaming.decode_state import DecodeState
from engine.streaming.prefetch import Prediction, Prefetch, link, request_choice

from .result import COUNTS
from .sizes import ReadBank


class DryPool(PoolRequests):
    """A pool without memory. `loads` counts the experts that were requested and not there."""

    loads = 0

    def request(self, experts: np.ndarray, keep: np.ndarray | None = None, *, speculative: bool = False) -> int:
        queued = super().request(experts, keep, speculative=speculative)
        self.loads += queued
        return queued

    def guess(self, experts: np.ndarray, time: int) -> int:
        issued = super().guess(experts, time)
        self.loads += issued
        return issued


class DryRun:
    """The state of one replay. `pairs` are (layer, layer that it predicts), and `number` the experts of a prediction."""

    def __init__(self, recording: Recording, banks: Sequence[ReadBank], knobs: Knobs, *, files: int, top_k: int) -> None:
        layers = 1 + max(bank.layer for bank in banks)
        self._reader = Reader(
            (Path(),) * max(1, files), threads=1, block_bytes=knobs.read_block_kib * 1024, direct=knobs.io_mode == "direct",
            gbps=None, dry=True,
        )  # fmt: skip
        self._state = DecodeState(layers, max(bank.experts for bank in banks), knobs.evict_half_life, self._reader, Stats())
        self._pools = [self._layer([bank for bank in banks if bank.layer == n]) for n in range(layers)]
        self._quantizing = [pool for layer in self._pools for pool in layer.pools if not pool.decodes]
        self._partial = [n for n, layer in enumerate(self._pools) if not layer.complete]
        self._sure = top_k * (layers - len(self._partial))
        self._experts = np.ascontiguousarray(recording.experts.transpose(1, 0, 2))
        self._computed = self._experts[..., 0] >= 0
        self._predicted = recording.predicted
        self._slots = np.zeros(recording.experts.shape[-1], np.int32)
        self.number = experts_predicted(knobs.prefetch_width, top_k)
        self._prefetch: dict[int, Prefetch] = {}
        if knobs.prefetch != "off":
            self._prefetch = {n: Prefetch(_recorded, partial(self._guess, n), self._state.stats) for n in self._partial}
            link(list(self._prefetch.values()), knobs.prefetch_depth)
        number_of = {id(prefetch): n for n, prefetch in self._prefetch.items()}
        self._ahead = {n: [(p, number_of[id(p)]) for p in prefetch.ahead] for n, prefetch in self._prefetch.items()}
        self._state.stats.reset()

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(n, of) for n, ahead in self._ahead.items() for _, of in ahead if of != n]

    def through(self, passes: Sequence[Pass], timed_tokens: int | None = None) -> tuple[dict[str, np.ndarray], int]:
        """Repeat the passes up to the decoded token number `timed_tokens`. Returns the counts of each decoded token, and the
        bytes that they read ahead and do not use."""
        counts: list[np.ndarray] = []
        wasted_bytes = 0
        for one in passes:
            counted = one.decode and not one.warm_up
            if counted and len(counts) == timed_tokens:
                break
            before, wasted = self._counts(), self._state.stats.prefetch_wasted_bytes
            self._pass(one.begin, one.end)
            if counted:
                counts.append(self._counts() - before)
                wasted_bytes += self._state.stats.prefetch_wasted_bytes - wasted
        table = np.array(counts, np.int64).reshape(-1, len(COUNTS))
        table[:, 0] += self._sure
        return dict(zip(COUNTS, table.T, strict=True)), wasted_bytes

    def _counts(self) -> np.ndarray:
        """The counts so far, in the order of `COUNTS`; without the hits of layers that hold every expert."""
        stats = self._state.stats
        layers = stats.layers.sum(axis=0)[[HITS, MISSES, READS, BYTES, LAYERS_MISSED]].tolist()
        quantized = sum(pool.loads for pool in self._quantizing)
        return np.array([*layers, stats.prefetch_issued, stats.prefetch_useful, quantized], np.int64)

    def _pass(self, begin: int, end: int) -> None:
        for layer in self._partial:
            ids, computed = self._experts[layer, begin:end], self._computed[layer, begin:end]
            if not computed.all():
                ids = ids[computed]
            if len(ids):
                self._choice(layer, ids, begin)
        self._state.position += end - begin

    def _choice(self, layer: int, ids: np.ndarray, token: int) -> None:
        """Request the experts `ids` [tokens, top-k] of one layer, as `StreamedLayer` does."""
        predictions = self._predictions(layer, token) if len(ids) == 1 else []
        prefetch = self._prefetch.get(layer)
        request_choice(self._state, layer, self._pools[layer], prefetch, ids, self._slots, predictions)

    def _predictions(self, layer: int, token: int) -> list[Prediction]:
        found = []
        for prefetch, of in self._ahead.get(layer, ()):
            recorded = self._predicted.get((of - layer, self.number))
            if recorded is not None and recorded[token, layer, 0] >= 0:
                found.append(Prediction(prefetch, recorded[token, layer]))
        return found

    def _guess(self, layer: int, experts: np.ndarray) -> None:
        self._pools[layer].guess(experts, self._state.position + 1)

    def _layer(self, banks: list[ReadBank]) -> LayerPools[DryPool]:
        layer = LayerPools([self._pool(bank) for bank in banks], self._state.slot_of[banks[0].layer])
        if not layer.complete:
            for pool, bank in zip(layer.pools, banks, strict=True):
                pool.fill(bank.pinned)
        return layer

    def _pool(self, bank: ReadBank) -> DryPool:
        state = self._state
        native = core.Pool(
            state.layers[bank.layer], self._reader.native, min(bank.slots, len(bank.members)),
            pinned_flags(bank.pinned, state.slot_of.shape[1]),
            [(file, offset, nbytes, None, 0, -1, of) for file, offset, nbytes, of in bank.ranges], [], 0, False, None,
        )  # fmt: skip
        return DryPool(
            native, bank.members, bank.slots, bank.pinned, state.stats, block=f"layer {bank.layer}",
            expert_bytes=bank.expert_bytes, decodes=not bank.quantized,
        )  # fmt: skip


def _recorded(_: Any) -> Any:
    """The router of a layer whose predictions are recorded; it is never run."""
    raise NotImplementedError
