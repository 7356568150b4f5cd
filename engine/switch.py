"""StreamingSwitch: stands where mlx-lm's SwitchGLU or SwitchMLP stood, and has the experts read that a token asks for.

All of mlx-lm's Mixture-of-Experts models share that seam: `y = switch(x, indices)`, with the weighting and the shared
experts outside. Here the router's choice is read back to the host (the one sync of a layer), missing experts are read
into slots, and mlx-lm's own module computes on the slots, so that the result is the resident model's to the last bit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .evict import DecayedFrequency
from .reader import Reader
from .slots import Bank
from .stats import Stats

Router = Callable[[mx.array], mx.array]


class Run:
    """What all layers of one engine share: reader, counters, and the books of what is cached and how warm it is.

    `slot_of` (int32, -1: not cached), `uses` and the policy's warmth are [layers, experts]; `position` counts the tokens
    that have gone through.
    """

    def __init__(self, layers: int, experts: int, half_life: float, reader: Reader, stats: Stats) -> None:
        self.reader = reader
        self.stats = stats
        self.policy = DecayedFrequency((layers, experts), half_life)
        self.slot_of = np.full((layers, experts), -1, np.int32)
        self.uses = np.zeros((layers, experts), np.int64)
        self.position = 0

    def use(self, layers: np.ndarray | int, experts: np.ndarray, times: np.ndarray | int) -> None:
        """Count uses; the three arguments are broadcast against each other."""
        layers, experts = np.broadcast_arrays(layers, experts)
        self.policy.use((layers, experts), times)
        np.add.at(self.uses, (layers, experts), 1)


class LayerStream:
    """The banks of one layer and the way of a token through them.

    `router` predicts this layer's choice from another layer's input (`x` -> expert ids); `ahead` are the next layers to
    ask so, `prefetch_depth` of them. While `optimistic`, every chosen expert is taken to be in its slot, and the choice
    is left in `asked` for `engine.window` to check.
    """

    def __init__(self, number: int, banks: list[Bank], run: Run, router: Router | None) -> None:
        self.number = number
        self.banks = banks
        self.router = router
        self.ahead: list[LayerStream] = []
        self.optimistic = False
        self.asked = mx.array([], dtype=mx.uint32)
        self._run = run
        self._slot_of = run.slot_of[number]
        self._bank_of = np.zeros(len(self._slot_of), np.int8)
        self._complete = False
        self._tables: list[mx.array] = []
        for position, bank in enumerate(banks):
            self._bank_of[bank.members] = position
        self._is_second = mx.array(self._bank_of == 1)

    @property
    def complete(self) -> bool:
        """Every expert is in its slot, and will stay there: nothing can be missing."""
        self._complete = self._complete or all(bank.complete for bank in self.banks)
        return self._complete

    def load_all(self) -> None:
        """Fill every slot; for banks in which all experts fit."""
        for bank in self.banks:
            bank.request(bank.members, self._run.reader)
            bank.settle(bank.members)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        if self.optimistic:
            self.asked = indices.reshape(-1)
            return self._on_device(x, indices)
        if self.complete:  # no need to know on the host what was chosen
            self._run.stats.hits += indices.size
            return self._on_device(x, indices)
        guesses = self._ask_ahead(x, indices)
        with self._run.stats.timed("sync_ms"):
            mx.eval(indices, *(ids for _, ids in guesses))
        ids = np.array(indices).astype(np.int32)
        needed = np.unique(ids)
        self._count(ids, needed)
        batches = list(self._batches(needed))
        if len(batches) == 1:
            bank, experts = batches[0]
            bank.request(experts, self._run.reader)
            self._read_ahead(guesses)
            bank.settle(experts)
            return bank.inner(x, mx.array(self._slot_of[ids]))
        y = self._in_batches(x, ids, batches)
        self._read_ahead(guesses)
        return y

    def request(self, experts: np.ndarray) -> None:
        """Queue the reads of those of `experts` (distinct, at most top-k) that are not cached."""
        for number, bank in enumerate(self.banks):
            bank.request(experts[self._bank_of[experts] == number], self._run.reader)

    def settle(self, experts: np.ndarray) -> None:
        """Return when all of `experts` are in their slots. Raises `ReadError`."""
        for number, bank in enumerate(self.banks):
            bank.settle(experts[self._bank_of[experts] == number])

    def _on_device(self, x: mx.array, indices: mx.array) -> mx.array:
        """Compute with the expert-to-slot table on the device. A missing expert gives slot 0: void, but harmless."""
        if not self._tables or any(bank.changed for bank in self.banks):
            slots = np.maximum(self._slot_of, 0)
            self._tables = [mx.array(np.where(self._bank_of == n, slots, 0)) for n in range(len(self.banks))]
            for bank in self.banks:
                bank.changed = False
        outputs = [bank.inner(x, table[indices]) for bank, table in zip(self.banks, self._tables, strict=True)]
        if len(outputs) == 1:
            return outputs[0]
        return mx.where(self._is_second[indices][..., None], outputs[1], outputs[0])

    def _count(self, ids: np.ndarray, needed: np.ndarray) -> None:
        """Tell the policy what was chosen, each token at its own time, and count hits and misses."""
        tokens = ids.size // ids.shape[-1]
        times = np.repeat(self._run.position + np.arange(1, tokens + 1), ids.shape[-1])
        self._run.use(self.number, ids.reshape(-1), times)
        hits = int((self._slot_of[needed] >= 0).sum())
        self._run.stats.hits += hits
        self._run.stats.misses += len(needed) - hits

    def _batches(self, needed: np.ndarray) -> Iterator[tuple[Bank, np.ndarray]]:
        """Split the needed experts by bank, and by what a bank can hold at once: cached ones first. Where that is less
        than all, a batch takes half of the slots, so that the next one can be read while it is computed."""
        for number, bank in enumerate(self.banks):
            wanted = needed[self._bank_of[needed] == number]
            wanted = wanted[np.argsort(self._slot_of[wanted] < 0, kind="stable")]
            size = bank.slots if len(wanted) <= bank.slots else max(1, bank.slots // 2)
            for begin in range(0, len(wanted), size):
                yield bank, wanted[begin : begin + size]

    def _in_batches(self, x: mx.array, ids: np.ndarray, batches: list[tuple[Bank, np.ndarray]]) -> mx.array:
        """Compute batch by batch on the rows that want its experts, then put the rows back in order."""
        flat_x, flat_ids = x.reshape(-1, x.shape[-1]), ids.reshape(-1)
        outputs, order = [], []
        reader = self._run.reader
        for (bank, experts), following in itertools.zip_longest(batches, batches[1:]):
            bank.request(experts, reader)
            if following is not None:
                next_bank, next_experts = following
                if next_bank is not bank or len(experts) + len(next_experts) <= bank.slots:
                    next_bank.request(next_experts, reader, keep=experts)
            bank.settle(experts)
            rows = np.flatnonzero(np.isin(flat_ids, experts))
            tokens = mx.array(rows // ids.shape[-1])
            y = bank.inner(flat_x[tokens], mx.array(self._slot_of[flat_ids[rows]])[:, None])
            mx.eval(y)  # before the bank's slots are filled anew
            outputs.append(y[:, 0])
            order.append(rows)
        back = mx.array(np.argsort(np.concatenate(order)))
        return mx.concatenate(outputs)[back].reshape(*ids.shape, -1)

    def _ask_ahead(self, x: mx.array, indices: mx.array) -> list[tuple[LayerStream, mx.array]]:
        """The next layers' routers on this layer's input (stale by as many layers); while decoding only, because a
        prefill wants nearly every expert anyway."""
        if indices.size != indices.shape[-1]:
            return []
        return [(layer, layer.router(x)) for layer in self.ahead if layer.router is not None and not layer.complete]

    def _read_ahead(self, guesses: list[tuple[LayerStream, mx.array]]) -> None:
        for layer, guess in guesses:
            ids = np.unique(np.array(guess).astype(np.int32))
            for number, bank in enumerate(layer.banks):
                members = ids[layer._bank_of[ids] == number]
                bank.guess(members, self._run.position + 1, self._run.reader)


class StreamingSwitch(nn.Module):
    """The module that takes the switch's place in the model. The stream is hidden from MLX's parameter trees."""

    def __init__(self, stream: LayerStream) -> None:
        super().__init__()
        object.__setattr__(self, "stream", stream)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        return self.stream(x, indices)


def router_of(block: nn.Module, top_k: int) -> Router | None:
    """A function from the block's input to the expert ids its router would choose, or None if it has none we know.

    mlx-lm's routers return (ids, weights), or are linear layers whose largest outputs are chosen.
    """
    gate = block.get("gate", block.get("router"))
    if gate is None:
        return None

    def route(x: mx.array) -> mx.array:
        out = gate(x)
        if isinstance(out, tuple):
            return out[0]
        return mx.argpartition(-out, kth=top_k - 1, axis=-1)[..., :top_k]

    return route
