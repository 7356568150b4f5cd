"""StreamingSwitch: stands where mlx-lm's SwitchGLU or SwitchMLP stood, and has the experts read that a token asks for.

All of mlx-lm's Mixture-of-Experts models share that seam: `y = switch(x, indices)`, with the weighting and the shared
experts outside. Here the router's choice is read back to the host (the one sync of a layer), missing experts are read
into slots, and mlx-lm's own module computes on the slots, so that the result is the resident model's to the last bit.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from time import perf_counter
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from engine.cache.eviction import DecayedFrequency
from engine.cache.slots import Bank
from engine.disk.reader import Reader
from engine.model.switches import StreamingSwitch
from engine.stats import LayerCounts, Stats

from .gating import LEFT_OUT, Gates, deferred
from .prefetch import Foretelling, Prefetch

if TYPE_CHECKING:
    from .speculate import Windows


class Run:
    """What all layers of one engine share: reader, counters, and the books of what is cached and how warm it is.

    `slot_of` (int32, -1: not cached), `uses` and the policy's warmth are [layers, experts]; `position` counts the tokens
    that have gone through. While `unused`, nobody wants the output of the last layer.
    """

    def __init__(self, layers: int, experts: int, half_life: float, reader: Reader, stats: Stats) -> None:
        self.reader = reader
        self.stats = stats
        self.stats.layers = [LayerCounts() for _ in range(layers)]
        self.policy = DecayedFrequency((layers, experts), half_life)
        self.slot_of = np.full((layers, experts), -1, np.int32)
        self.uses = np.zeros((layers, experts), np.int64)
        self.position = 0
        self.unused = False
        self._hits: list[tuple[int, np.ndarray]] = []

    def use(self, layers: np.ndarray | int, experts: np.ndarray, times: np.ndarray | int) -> None:
        """Count uses; the three arguments are broadcast against each other."""
        layers, experts = np.broadcast_arrays(layers, experts)
        self.policy.use((layers, experts), times)
        np.add.at(self.uses, (layers, experts), 1)

    def hit(self, layer: int, experts: np.ndarray) -> None:
        """Note that a token's `experts` were all there; counted together at the end of the pass."""
        self._hits.append((layer, experts))

    def forget(self) -> None:
        """Begin as if no token had been before; `uses` and the counters go on."""
        self.policy.warmth[:] = -np.inf
        self.position = 0
        self._hits.clear()

    def end_pass(self, tokens: int) -> None:
        """Do the books of a forward pass over `tokens` tokens."""
        if self._hits:
            layers, experts = zip(*self._hits, strict=True)
            self._hits.clear()
            chosen = np.stack(experts)
            self.use(np.array(layers)[:, None], chosen, self.position + 1)
            for layer in layers:
                self.stats.count_uses(layer, chosen.shape[1], 0)
        self.position += tokens


class LayerStream:
    """The banks of one layer and the way of a token through them.

    While it is part of a `window` of layers, that decides how a token goes through, by the choice left in `asked`. `last`:
    no layer comes after it.
    """

    def __init__(self, number: int, banks: list[Bank], run: Run, *, last: bool) -> None:
        self.number = number
        self.banks = banks
        self.prefetch: Prefetch | None = None
        self.window: Windows | None = None
        self.gates: Gates | None = None
        self.asked = mx.array([], dtype=mx.uint32)
        self._run = run
        self._last = last
        self._slot_of = run.slot_of[number]
        self._only = banks[0] if len(banks) == 1 else None
        self._bank_of = np.zeros(len(self._slot_of), np.int8)
        self._tables: list[mx.array] = []
        self._is_there: mx.array | None = None
        for position, bank in enumerate(banks):
            self._bank_of[bank.table.members] = position
        self._is_second = mx.array(self._bank_of == 1)
        self.complete = all(bank.holds_all for bank in banks)

    def fill(self) -> None:
        """Load all experts, in the order of their numbers; for a layer in which all fit."""
        for bank in self.banks:
            bank.fill(bank.table.members, self._run.reader)

    def forget(self) -> None:
        """Empty the cache as it was after loading; nothing may be queued that reads it."""
        if not self.complete:
            for bank in self.banks:
                bank.forget()
        if self.prefetch is not None:
            self.prefetch.forget()

    def __call__(self, x: mx.array, indices: mx.array, weights: mx.array | None = None) -> mx.array:
        """The outputs [..., top-k, dims] of the experts `indices`. With the `weights` [..., top-k, 1] that the router gave
        them the gates decide what is read of what is missing, and it is the outputs times their weights; where that leaves
        experts out, a single token has fewer than top-k. Not for windows."""
        if self._run.unused and self._last:
            return mx.zeros((*indices.shape, x.shape[-1]), x.dtype)
        if self.window is not None:
            return self.window.through(self, x, indices)
        if self.complete:
            return self.on_device(x, indices)
        decoding = indices.size == indices.shape[-1]
        foretellings = self.prefetch.ask(x) if self.prefetch is not None and decoding else []
        begin = perf_counter()
        mx.eval(indices, *(f.ids for f in foretellings))
        ids = np.asarray(indices)
        self._run.stats.sync_ms += (perf_counter() - begin) * 1e3
        if decoding and self.prefetch is None and self._only is not None and self._only.settled:
            slots = self._slot_of[ids]
            if slots.min() >= 0:
                self._run.hit(self.number, ids.reshape(-1))
                y = self._only.inner(x, mx.array(slots))
                return y if weights is None else y * weights
        ids = ids.astype(np.int32)
        if weights is not None:
            ids, weights = self._decided(x, ids, weights)
        y = self._asked_for(x, ids, foretellings)
        return y if weights is None else y * weights

    def _decided(self, x: mx.array, ids: np.ndarray, weights: mx.array) -> tuple[np.ndarray, mx.array]:
        """What the gates make of a router's choice and its weights. Nothing is asked if nothing is missing."""
        cached = self._slot_of >= 0
        if self.gates is None or cached[ids].all():
            return ids, weights
        tokens, run, candidates = ids.size // ids.shape[-1], self._run, None
        asked = [weights]
        if self.gates.candidates is not None:
            wide = self.gates.candidates(x.reshape(1, tokens, -1))
            asked += [wide.ids, wide.weights]
        with run.stats.timed("sync_ms"):
            mx.eval(asked)
        theirs, *others = (_as_numpy(a).reshape(tokens, -1) for a in asked)
        if others:
            candidates = others[0].astype(np.int32), others[1]
        choice = self.gates.decide(ids.reshape(tokens, -1), theirs, candidates, cached)
        if choice is None:
            return ids, weights
        run.stats.swapped += choice.swapped
        run.stats.dropped += choice.dropped
        run.stats.dropped_mass += choice.dropped_mass
        left, factors = choice.ids, choice.weights
        if tokens == 1:
            left, factors = left[left != LEFT_OUT], factors[left != LEFT_OUT]
        shape = (*ids.shape[:-1], -1)
        return left.reshape(shape), mx.array(factors.reshape(*shape, 1)).astype(weights.dtype)

    def _asked_for(self, x: mx.array, ids: np.ndarray, foretellings: list[Foretelling]) -> mx.array:
        """The output of the experts `ids` [..., any number], and the books of it; 0 for those that are left out."""
        needed = np.unique(ids[ids != LEFT_OUT])
        if self.prefetch is not None:
            self.prefetch.hear(foretellings)
            self.prefetch.check(ids, self._slot_of, {e for bank in self.banks for e in bank.table.guessed})
        self._count(ids, needed)
        return self.on_host(x, ids, foretellings)

    def on_host(self, x: mx.array, ids: np.ndarray, foretellings: list[Foretelling] | None = None) -> mx.array:
        """Compute with the choice `ids` [..., top-k] known: read what is missing, then use the slots' numbers."""
        asked = ids[ids != LEFT_OUT]
        batches = list(self._batches(np.unique(asked)))
        if len(batches) == 1 and len(asked) == ids.size:
            bank, experts = batches[0]
            bank.request(experts, self._run.reader)
            self._read_ahead(foretellings)
            bank.settle(experts)
            return bank.inner(x, mx.array(self._slot_of[ids]))
        if len(batches) == len(self.banks) and ids.size == ids.shape[-1]:
            return self._at_two_widths(x, ids, batches, foretellings)
        y = self._in_batches(x, ids, batches)
        self._read_ahead(foretellings)
        return y

    def request(self, experts: np.ndarray, *, speculative: bool) -> None:
        """Queue the reads of those of `experts` (distinct, at most top-k) that are not cached."""
        for number, bank in enumerate(self.banks):
            bank.request(experts[self._bank_of[experts] == number], self._run.reader, speculative=speculative)

    def waits_for(self, experts: np.ndarray) -> bool:
        """Whether the reads of one of `experts` are under way."""
        return any(bank.waits_for(experts) for bank in self.banks)

    def take_in(self) -> bool:
        """Settle the reads that have ended by now; whether none of this layer is left under way."""
        for bank in self.banks:
            bank.take_in()
        return all(bank.settled for bank in self.banks)

    def guess(self, experts: np.ndarray) -> None:
        """Read `experts` on speculation that the next token wants them."""
        for number, bank in enumerate(self.banks):
            bank.guess(experts[self._bank_of[experts] == number], self._run.position + 1, self._run.reader)

    def on_device(self, x: mx.array, indices: mx.array) -> mx.array:
        """Compute with the expert-to-slot table on the device. The output of a missing expert is 0: void, but the layers
        behind then show more of what they will choose than with another expert's output in its place."""
        if not self._tables or any(bank.changed for bank in self.banks):
            slots = np.maximum(self._slot_of, 0)
            self._tables = [mx.array(np.where(self._bank_of == n, slots, 0)) for n in range(len(self.banks))]
            self._is_there = None if self.complete else mx.array(self._slot_of >= 0)
            for bank in self.banks:
                bank.changed = False
        outputs = [bank.inner(x, table[indices]) for bank, table in zip(self.banks, self._tables, strict=True)]
        y = outputs[0] if len(outputs) == 1 else mx.where(self._is_second[indices][..., None], outputs[1], outputs[0])
        return y if self._is_there is None else mx.where(self._is_there[indices][..., None], y, 0)

    def _count(self, ids: np.ndarray, needed: np.ndarray) -> None:
        """Tell the policy what was chosen, each token at its own time, and count hits and misses."""
        tokens = ids.size // ids.shape[-1]
        times = np.repeat(self._run.position + np.arange(1, tokens + 1), ids.shape[-1])
        used = ids.reshape(-1) != LEFT_OUT
        self._run.use(self.number, ids.reshape(-1)[used], times[used])
        hits = int((self._slot_of[needed] >= 0).sum())
        self._run.stats.count_uses(self.number, hits, len(needed) - hits)

    def _batches(self, needed: np.ndarray) -> Iterator[tuple[Bank, np.ndarray]]:
        """Split the needed experts by bank, and by what a bank can hold at once: cached ones first. Where that is less
        than all, a batch takes half of the slots that are not pinned, so that the next one can be read meanwhile."""
        for number, bank in enumerate(self.banks):
            wanted = needed[self._bank_of[needed] == number]
            wanted = wanted[np.argsort(self._slot_of[wanted] < 0, kind="stable")]
            size = bank.table.slots if len(wanted) <= bank.table.loose else max(1, bank.table.loose // 2)
            for begin in range(0, len(wanted), size):
                yield bank, wanted[begin : begin + size]

    def _at_two_widths(
        self, x: mx.array, ids: np.ndarray, batches: list[tuple[Bank, np.ndarray]], foretellings: list[Foretelling] | None
    ) -> mx.array:
        """Compute one token's experts, some of each bank, of which all have slots."""
        for bank, experts in batches:
            bank.request(experts, self._run.reader)
        self._read_ahead(foretellings)
        flat, outputs, places = ids.reshape(-1), [], []
        for number, (bank, experts) in enumerate(batches):
            bank.settle(experts)
            own = np.flatnonzero(self._bank_of[flat] == number)
            slots = self._slot_of[flat[own]].reshape(*ids.shape[:-1], -1)
            outputs.append(bank.inner(x, mx.array(slots)))
            places.append(own)
        return mx.concatenate(outputs, axis=-2)[..., mx.array(np.argsort(np.concatenate(places))), :]

    def _in_batches(self, x: mx.array, ids: np.ndarray, batches: list[tuple[Bank, np.ndarray]]) -> mx.array:
        """Compute batch by batch on the rows that want its experts, then put the rows back in order, with 0 for what is left
        out."""
        flat_x, flat_ids = x.reshape(-1, x.shape[-1]), ids.reshape(-1)
        outputs, order = [], []
        reader = self._run.reader
        for (bank, experts), following in itertools.zip_longest(batches, batches[1:]):
            bank.request(experts, reader)
            if following is not None:
                next_bank, next_experts = following
                if next_bank is not bank or len(experts) + len(next_experts) <= bank.table.loose:
                    next_bank.request(next_experts, reader, keep=experts)
            bank.settle(experts)
            rows = np.flatnonzero(np.isin(flat_ids, experts))
            tokens = mx.array(rows // ids.shape[-1])
            y = bank.inner(flat_x[tokens], mx.array(self._slot_of[flat_ids[rows]])[:, None])
            mx.eval(y)  # before the bank's slots are filled anew
            outputs.append(y[:, 0])
            order.append(rows)
        computed = np.concatenate(order)
        if len(computed) < ids.size:
            outputs.append(mx.zeros((1, outputs[0].shape[-1]), outputs[0].dtype))
        back = np.full(ids.size, len(computed))
        back[computed] = np.arange(len(computed))
        return mx.concatenate(outputs)[mx.array(back)].reshape(*ids.shape, -1)

    def _read_ahead(self, foretellings: list[Foretelling] | None) -> None:
        if self.prefetch is not None and foretellings:
            self.prefetch.read_ahead(foretellings)


class GatedSwitch(StreamingSwitch):
    """The same where the gate weights have a say in what is read: its outputs come into being when they are weighed."""

    def __call__(self, x: mx.array, indices: mx.array) -> Any:
        return deferred(x, indices, functools.partial(self.stream, x, indices))


def _as_numpy(array: mx.array) -> np.ndarray:
    """An evaluated array; numpy does not know bfloat16."""
    return np.array(array.astype(mx.float32) if array.dtype == mx.bfloat16 else array)
