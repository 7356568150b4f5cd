"""Optimistic decoding: queue several layers without asking which experts they chose, then check them all at once.

Reading a router's choice back to the host drains the device's queue, and at one sync a layer that, not the disk, is the
first wall (on an H200 it leaves 26 to 38 % of the resident speed). So the table from expert to slot lives on the device,
and a window of layers is queued as if every chosen expert were in its slot. At the window's end the choices come back in
one sync. If none was missing, that was all.

Otherwise everything from the first layer that missed an expert is void: the caches (attention, latent, recurrent) are set
back, and the window runs again from there. The void pass was not for nothing: it showed nearly all the experts that the
rest of the window needs, and they are read together, at full queue depth. In the second run a layer that still waits for
reads is asked what it chooses, because it has to wait anyway: what was not foreseen is then read ahead of the rest. The
others are queued as before and checked with the next sync. What is kept never missed an expert: the result is exact.

The layers of mlx-lm's models are called one after the other with the same hidden state handed on; that is checked in every
call, and a model that does otherwise is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from engine.errors import KnobError

from .layer import LayerStream, Run

ALL, AUTO = 0, -1
TOGETHER = 12  # layers handed to the device at a time: it computes them while the next are queued


@dataclass
class Call:
    """One layer's call in the open window, with what it takes to make it again."""

    layer: Any
    x: mx.array
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    caches: list[tuple[Any, dict[str, Any]]]

    def run(self) -> mx.array:
        return type(self.layer).plain(self.layer, self.x, *self.args, **self.kwargs)


class _Void(Exception):
    """A layer that was queued earlier in this pass had missed an expert: number `first` of those that ask."""

    def __init__(self, first: int) -> None:
        self.first = first


class Auto:
    """Chooses between checking every layer and once a token, by the time that tokens took of late.

    Which is faster depends on how often something is missing, on the disk, and on what a sync costs on this device; so both
    are tried on TRIED tokens each, and the faster one is kept for PERIOD tokens before both are tried again.
    """

    TRIED, PERIOD = 4, 64

    def __init__(self, most: int, clock: Callable[[], float] = perf_counter) -> None:
        self._sizes = (1, most)
        self._clock = clock
        self._token = 0
        self._seconds = [0.0, 0.0]
        self._began: float | None = None

    def size(self, decoding: bool) -> int:
        """The window for the token that begins now; called at the start of every forward pass."""
        now, began = self._clock(), self._began
        self._began = now if decoding else None
        if not decoding:
            return self._sizes[1]
        if began is not None:
            which, at = divmod(self._token, self.TRIED)
            if which < 2 and at > 0:  # the first after a change pays for it
                self._seconds[which] += now - began
            self._token += 1
            if self._token == self.PERIOD:
                self._token, self._seconds = 0, [0.0, 0.0]
        which = self._token // self.TRIED
        return self._sizes[which if which < 2 else int(self._seconds[1] < self._seconds[0])]


class Windows:
    """The windows of one engine. `size` is the layers with experts that one check covers; ALL and AUTO are possible."""

    def __init__(self, model: nn.Module, streams: dict[str, LayerStream], size: int, run: Run) -> None:
        self._run = run
        most = len(streams)
        self._auto = Auto(most) if size == AUTO else None
        self._size = most if size in (ALL, AUTO) else min(size, most)
        self._open: list[Call] = []
        self._handed_on: mx.array | None = None
        self._asking: list[tuple[int, LayerStream]] = []  # position in `_open` and stream of the layers that may miss
        self._unchecked: list[int] = []  # of these, by number, the ones whose choice is not known yet
        self._ids = np.empty((0, 0), np.int32)  # what they chose, as far as it is known
        self._shown = self._ids  # what was believed of it when it was last read
        self._again = False
        self._stream_of: dict[int, LayerStream] = {}
        layers = _layers(model, streams, self._stream_of)
        self._first, self._last = layers[0], layers[-1]
        for layer in layers:
            _hook(layer, self)

    def call(self, layer: Any, x: mx.array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        """Stands for `layer(x, *args, **kwargs)`; a decoded token's call becomes part of a window."""
        decoding = x.size == x.shape[-1] and not self._run.unused
        if layer is self._first:
            self._begin()  # a pass that an error cut off may have left some
            if self._auto is not None:
                self._size = self._auto.size(decoding)
        elif x is not self._handed_on:
            raise KnobError(f"sync_window is not possible here: {type(layer).__name__} is not in a plain chain; use 1")
        windowed = decoding and self._size > 1
        stream = self._stream_of.get(id(layer))
        if stream is not None:
            stream.window = self if windowed else None
        this = Call(layer, x, args, kwargs, _snapshots([*args, *kwargs.values()]) if windowed else [])
        if windowed:
            self._open.append(this)
        out = this.run()
        if windowed and (layer is self._last or len(self._asking) >= self._size):
            out = self._checked(out)
            self._begin()
        self._handed_on = out
        return out

    def through(self, stream: LayerStream, x: mx.array, indices: mx.array) -> mx.array:
        """The experts' output for a token, for a layer in the open window."""
        stream.asked = indices.reshape(-1)
        if not self._again:
            self._asking.append((len(self._open) - 1, stream))
            if len(self._asking) % TOGETHER == 0:
                mx.async_eval(stream.asked)
            return stream.on_device(x, indices)
        number = next(n for n, (_, s) in enumerate(self._asking) if s is stream)
        self._unchecked.append(number)
        if stream.take_in():
            return stream.on_device(x, indices)
        first = self._learn(self._unchecked)
        self._unchecked = []
        if first is not None and first < number:
            raise _Void(first)
        return stream.on_host(x, self._ids[number].reshape(indices.shape))

    def oracle(self, number: int, ids: np.ndarray, void_pass: int) -> np.ndarray:
        """What may be believed of the choice `ids` of layer `number`, which the window's void pass number `void_pass` showed
        behind a miss. All of it; a benchmark whose routing does not depend on the hidden state believes less."""
        return ids

    def _begin(self) -> None:
        self._open.clear()
        self._asking.clear()
        self._unchecked.clear()
        self._again = False

    def _checked(self, out: mx.array) -> mx.array:
        """The output of a run over the open window in which no expert was missing; `out` is that of the first pass."""
        if not self._asking:
            return out
        run, stats = self._run, self._run.stats
        count = len(self._asking)
        before = run.slot_of.copy()
        self._ids = np.zeros((count, self._asking[0][1].asked.size), np.int32)
        self._shown = self._ids.copy()
        first, passes = None, 1
        for begin in range(0, count, TOGETHER):
            numbers = list(range(begin, min(begin + TOGETHER, count)))
            missed = self._learn(numbers)
            first = missed if first is None else first
            if first is not None:
                self._request(numbers, first, passes)
        void: list[tuple[int, np.ndarray]] = []  # of every void pass, the first layer behind its miss and what was believed
        while first is not None:
            void.append((first + 1, self._shown.copy()))
            out, first = self._run_again(first)
            passes += 1
            if first is not None:
                self._request(list(range(count)), first, passes)
        rows = np.array([stream.number for _, stream in self._asking])[:, None]
        absent = before[rows, self._ids] < 0
        stats.windows += 1
        stats.passes += passes
        for (_, stream), misses in zip(self._asking, absent.sum(axis=1).tolist(), strict=True):
            stats.count_uses(stream.number, absent.shape[1] - misses, misses)
        run.use(rows, self._ids, run.position + 1)
        for behind, shown in void:
            used = self._ids[behind:]
            foreseen, of = int((used[..., None] == shown[behind:, None]).any(axis=-1).sum()), used.size
            stats.foreseen += foreseen
            stats.foreseen_of += of
            if shown is not void[0][1]:
                stats.foreseen_later += foreseen
                stats.foreseen_later_of += of
        return out

    def _learn(self, numbers: list[int]) -> int | None:
        """Learn what the layers `numbers` chose, in one sync; the first that missed an expert, if one did."""
        if not numbers:
            return None
        streams = [self._asking[number][1] for number in numbers]
        with self._run.stats.timed("sync_ms"):
            chosen = mx.stack([stream.asked for stream in streams])
            mx.eval(chosen)
        seen = np.array(chosen).astype(np.int32)
        self._ids[numbers] = seen
        missed = (self._run.slot_of[np.array([stream.number for stream in streams])[:, None], seen] < 0).any(axis=1)
        for i, stream in enumerate(streams):
            missed[i] |= stream.waits_for(seen[i])
        return numbers[int(np.argmax(missed))] if missed.any() else None

    def _request(self, numbers: list[int], first: int, void_pass: int) -> None:
        """Queue the reads of what is missing from layer `first` on, which must wait for them, before those behind it."""
        for number in numbers:
            if number >= first:
                ids = self._ids[number]
                self._shown[number] = ids if number == first else self.oracle(number, ids, void_pass)
                self._asking[number][1].request(self._shown[number], speculative=number > first)

    def _run_again(self, first: int) -> tuple[mx.array, int | None]:
        """Run the window again from the layer that is number `first` of those that ask, with the caches set back. Its
        output, and the number of the first layer that missed an expert this time."""
        self._again = True
        self._unchecked = []
        stats = self._run.stats
        void = self._open[self._asking[first][0] :]
        hits = stats.hits
        out = void[0].x
        try:
            for call in void:
                stats.rejected_layers += 1
                for cache, state in call.caches:
                    cache.__dict__.update(_copied(state))
                call.x = out
                out = call.run()
        except _Void as missed:
            return out, missed.first
        finally:
            stats.hits = hits
        return out, self._learn(self._unchecked)


def _layers(model: nn.Module, streams: dict[str, LayerStream], stream_of: dict[int, LayerStream]) -> list[Any]:
    """The model's list of layers, in order; fills `stream_of` with the streams by their layer's id."""
    modules = dict(model.named_modules())
    found: dict[str, int] = {}
    for path, stream in streams.items():
        layer = re.match(r"(.*\blayers)\.(\d+)\.", path)
        if layer is None:
            raise KnobError(f"sync_window is not possible here: {path} is in no list of layers; use sync_window=1")
        stream_of[id(modules[f"{layer[1]}.{layer[2]}"])] = stream
        found[layer[1]] = found.get(layer[1], 0) + 1
    if len(found) != 1:
        raise KnobError(f"sync_window is not possible here: the layers are in {len(found)} lists; use sync_window=1")
    prefix = next(iter(found))
    numbers = sorted(int(n[len(prefix) + 1 :]) for n in modules if re.fullmatch(re.escape(prefix) + r"\.\d+", n))
    return [modules[f"{prefix}.{n}"] for n in numbers]


def _hook(layer: Any, windows: Windows) -> None:
    """Have calls of `layer` go through `windows`. Its class becomes a subclass, so that all else about it stays."""
    cls = type(layer)

    def call(self: Any, x: mx.array, *args: Any, **kwargs: Any) -> mx.array:
        return windows.call(self, x, args, kwargs)

    layer.__class__ = type(cls.__name__, (cls,), {"__call__": call, "plain": cls.__call__})


def _snapshots(arguments: list[Any]) -> list[tuple[Any, dict[str, Any]]]:
    """The caches among a layer's arguments, each with a shallow copy of its state.

    Shallow is enough: mlx-lm's caches replace their arrays, or write behind `offset`, where the next pass writes again.
    """
    caches = []
    for argument in arguments:
        if hasattr(argument, "__dict__") and hasattr(argument, "state"):
            caches.append((argument, _copied(argument.__dict__)))
            caches += _snapshots(list(getattr(argument, "caches", ())))
    return caches


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, list) else value for name, value in state.items()}
