"""Speculate: queues several layers without reading back which experts they chose, then checks all of them in one sync.

Reading a router's choice back to the host drains the device's queue. At one sync per layer this, not the disk, is the first
limit: on an H200 it leaves 26 to 38 % of the resident speed. The expert-to-slot table is therefore kept on the device, and a
window of layers is queued as if every chosen expert were in its slot. It is submitted to the device in groups. A group's
choices are read back while the device computes the next group; once an expert is missing, the reads for that group start.
If no expert was missing until the window's end, the window is done.

Otherwise the pass is rejected from the first layer that missed an expert: the caches (attention, latent, recurrent) are
restored and the window runs again from there. The rejected pass shows nearly all experts that the rest of the window needs,
and they are read together, at full queue depth. In the repeated run, a layer that still waits for reads has its choice read
back, since it has to wait anyway. Experts that the rejected pass did not predict are then read before the others, and reads
of wrong predictions that have not begun are withdrawn. All other layers are queued as before and checked with the next sync.
No accepted layer ever missed an expert, so the result is exact.

mlx-lm's models call their layers one after the other with the same hidden state passed on. This is checked in every call; a
model that does otherwise is refused.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from engine.stats import Stats
from engine.streaming.decode_state import DecodeState
from engine.streaming.layer import StreamedLayer

from .auto import AutoWindow
from .chain import Call, chain_of, intercept, not_plain, snapshots

ALL, AUTO = 0, -1
TOGETHER = 2  # layers of a group that is submitted to the device; it computes them while the next are queued


class RejectedPass(Exception):
    """Raised when a layer queued earlier in this pass missed an expert: number `first` of those that may miss."""

    def __init__(self, first: int) -> None:
        self.first = first


class SpeculativeWindows:
    """The windows of one engine. `size` is the number of layers with experts that one check covers, or ALL, or AUTO.

    `layers` maps the switches' paths to the streamed layers that may miss an expert.
    """

    def __init__(self, model: nn.Module, layers: dict[str, StreamedLayer], size: int, state: DecodeState) -> None:
        self._state = state
        most = len(layers)
        self._auto = AutoWindow(most) if size == AUTO else None
        self._size = most if size in (ALL, AUTO) else min(size, most)
        self._open: list[Call] = []
        self._passed_on: mx.array | None = None
        self._may_miss: list[tuple[int, StreamedLayer]] = []  # layers that may miss, each with its position in `_open`
        self._submitted: deque[tuple[list[int], mx.array]] = deque()  # groups of the first pass that are not read back
        self._grouped = 0  # number of layers that are in groups
        self._first_missed: int | None = None  # in the first pass, as far as it is read back
        self._before = np.empty((0, 0), np.int32)  # slot_of before the first request of the window
        self._unknown: list[int] = []  # numbers of the repeated layers whose choice was not read back yet
        self._ids = np.empty((0, 0), np.int32)  # choices of the layers that may miss, as far as they are known
        self._predicted = self._ids  # the choices that were last requested
        self._repeated = False
        chain, layer_of = chain_of(model, layers)
        self._streamed = {id(layer_of[path]): layer for path, layer in layers.items()}
        self._first, self._last = chain[0], chain[-1]
        self._plain = [(layer, type(layer)) for layer in chain]
        for layer in chain:
            intercept(layer, self.call)

    def remove(self) -> None:
        """Let the model call its layers itself from now on."""
        for layer, cls in self._plain:
            layer.__class__ = cls

    def call(self, layer: Any, x: mx.array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        """Compute `layer(x, *args, **kwargs)`. A decoded token's call becomes part of a window."""
        decoding = x.size == x.shape[-1] and not self._state.skip_last
        if layer is self._first:
            self._start()  # an error may have left an earlier window open
            if self._auto is not None:
                self._size = self._auto.size(decoding)
        elif x is not self._passed_on:
            raise not_plain(layer)
        windowed = decoding and self._size > 1
        streamed = self._streamed.get(id(layer))
        if streamed is not None:
            streamed.window = self.compute if windowed else None
        this = Call(layer, x, args, kwargs, snapshots([*args, *kwargs.values()]) if windowed else [])
        if windowed:
            self._open.append(this)
        out = this.run()
        if windowed and (layer is self._last or len(self._may_miss) >= self._size):
            out = self._accepted(out)
            self._start()
        self._passed_on = out
        return out

    def compute(self, layer: StreamedLayer, x: mx.array, indices: mx.array) -> mx.array:
        """Return the experts' outputs for a token, for a layer in the open window."""
        layer.chosen = indices.reshape(-1)
        if not self._repeated:
            self._may_miss.append((len(self._open) - 1, layer))
            if len(self._may_miss) % TOGETHER == 0:
                self._submit()
                self._look(all_but=1)
            return layer.cache.on_device(x, indices)
        number = next(n for n, (_, s) in enumerate(self._may_miss) if s is layer)
        self._unknown.append(number)
        if layer.cache.take_in():
            return layer.cache.on_device(x, indices)
        first = self._read_back(self._unknown)
        self._unknown = []
        if first is not None and first < number:
            raise RejectedPass(first)
        layer.cache.withdraw(self._ids[number])
        return layer.cache.on_host(x, self._ids[number].reshape(indices.shape))

    def interrupted(self) -> None:
        """State that something else than decoding took time, so that `auto` does not count it as a token's."""
        if self._auto is not None:
            self._auto.size(decoding=False)

    def prediction(self, number: int, ids: np.ndarray, rejected: int) -> np.ndarray:
        """Return the predicted choice of layer `number`, after the choice `ids` in the window's rejected pass `rejected`.

        It is `ids` itself. Forced routing, which does not depend on the hidden state, replaces this method to simulate a
        lower recall.
        """
        return ids

    def _start(self) -> None:
        self._open.clear()
        self._may_miss.clear()
        self._submitted.clear()
        self._grouped = 0
        self._first_missed = None
        self._unknown.clear()
        self._repeated = False

    def _submit(self) -> None:
        """Submit the layers that no group has, and let the device collect their choices."""
        numbers = list(range(self._grouped, len(self._may_miss)))
        self._grouped = len(self._may_miss)
        chosen = mx.stack([self._may_miss[number][1].chosen for number in numbers])
        mx.async_eval(chosen)
        self._submitted.append((numbers, chosen))

    def _look(self, all_but: int = 0) -> None:
        """Read back the choices of the submitted groups, `all_but` the last ones, and request what the pass has missed."""
        while len(self._submitted) > all_but:
            numbers, chosen = self._submitted.popleft()
            if numbers[0] == 0:
                self._before = self._state.slot_of.copy()
                self._ids = np.zeros((self._size, chosen.shape[1]), np.int32)
                self._predicted = self._ids.copy()
            missed = self._missed(numbers, chosen)
            self._first_missed = missed if self._first_missed is None else self._first_missed
            if self._first_missed is not None:
                self._request(numbers, self._first_missed, 1)

    def _accepted(self, out: mx.array) -> mx.array:
        """Repeat the open window until no expert is missing and return its output; `out` is the first pass's output."""
        if not self._may_miss:
            return out
        count = len(self._may_miss)
        if self._grouped < count:
            self._submit()
        self._look()
        self._ids, self._predicted = self._ids[:count], self._predicted[:count]
        first, passes = self._first_missed, 1
        rejected: list[tuple[int, np.ndarray]] = []  # per rejected pass: the first predicted layer, and the predictions
        while first is not None:
            rejected.append((first + 1, self._predicted.copy()))
            out, first = self._repeat(first)
            passes += 1
            if first is not None:
                self._request(list(range(count)), first, passes)
        self._count(passes, rejected)
        return out

    def _count(self, passes: int, rejected: list[tuple[int, np.ndarray]]) -> None:
        """Count the accepted window: hits and misses against `slot_of` as it was before, and the predictions' recall."""
        stats = self._state.stats
        rows = np.array([layer.number for _, layer in self._may_miss])[:, None]
        absent = (self._before[rows, self._ids] < 0) & ~repeats(self._ids)
        stats.windows += 1
        stats.passes += passes
        for (_, layer), misses in zip(self._may_miss, absent.sum(axis=1).tolist(), strict=True):
            stats.count_uses(layer.number, absent.shape[1] - misses, misses)
        for (_, layer), ids in zip(self._may_miss, self._ids, strict=True):
            self._state.layers[layer.number].use(ids, self._state.position + 1)
        count_recall(stats, self._ids, rejected)

    def _read_back(self, numbers: list[int]) -> int | None:
        """Read back the choices of the layers `numbers` in one sync; return the first that missed an expert, if any."""
        if not numbers:
            return None
        return self._missed(numbers, mx.stack([self._may_miss[number][1].chosen for number in numbers]))

    def _missed(self, numbers: list[int], chosen: mx.array) -> int | None:
        """Wait for the choices `chosen` of the layers `numbers` and keep them; return the first that missed an expert."""
        with self._state.stats.timed("sync_ms"):
            mx.eval(chosen)
        ids = np.array(chosen).astype(np.int32)
        self._ids[numbers] = ids
        layers = [self._may_miss[number][1] for number in numbers]
        missed = (self._state.slot_of[np.array([layer.number for layer in layers])[:, None], ids] < 0).any(axis=1)
        for i, layer in enumerate(layers):
            missed[i] |= layer.cache.waits_for(ids[i])
        return numbers[int(np.argmax(missed))] if missed.any() else None

    def _request(self, numbers: list[int], first: int, rejected: int) -> None:
        """Queue the reads of missing experts from layer `first` on; its reads precede those of the layers behind it. Reads
        that an earlier pass predicted and this one does not are withdrawn."""
        for number in numbers:
            if number >= first:
                ids, cache = self._ids[number], self._may_miss[number][1].cache
                self._predicted[number] = ids if number == first else self.prediction(number, ids, rejected)
                cache.withdraw(self._predicted[number])
                cache.request(self._predicted[number], speculative=number > first)

    def _repeat(self, first: int) -> tuple[mx.array, int | None]:
        """Repeat the window from layer `first` of those that may miss, with restored caches.

        Returns the output, and the number of the first layer that missed an expert this time.
        """
        self._repeated = True
        self._unknown = []
        stats = self._state.stats
        calls = self._open[self._may_miss[first][0] :]
        out = calls[0].x
        try:
            for call in calls:
                stats.rejected_layers += 1
                call.restore()
                call.x = out
                out = call.run()
        except RejectedPass as rejected:
            return out, rejected.first
        return out, self._read_back(self._unknown)


def count_recall(stats: Stats, ids: np.ndarray, rejected: list[tuple[int, np.ndarray]]) -> None:
    """Count how many of the choices `ids` [layers, top-k] were predicted. `rejected`: for each rejected pass the first layer
    that it predicted, and its predictions."""
    for position, (behind, predicted) in enumerate(rejected):
        used = ids[behind:]
        right, of = int((used[..., None] == predicted[behind:, None]).any(axis=-1).sum()), used.size
        stats.window_predicted += right
        stats.window_predicted_of += of
        if position:
            stats.window_predicted_later += right
            stats.window_predicted_later_of += of


def repeats(ids: np.ndarray) -> np.ndarray:
    """Return where a row of `ids` [rows, top-k] has an id that is further left, too."""
    same = ids[:, :, None] == ids[:, None, :]
    return np.asarray(np.tril(same, -1).any(axis=-1))
