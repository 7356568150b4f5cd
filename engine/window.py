"""Optimistic decoding: queue several layers without asking which experts they chose, then check them all at once.

Reading a router's choice back to the host drains the device's queue, and at one sync a layer that, not the disk, is the
first wall (on an H200 it leaves 26 to 38 % of the resident speed). So the table from expert to slot lives on the device,
and a window of layers is queued as if every chosen expert were in its slot. At the window's end the choices come back in
one sync. If an expert was missing, everything from the first layer that missed it is void: the caches (attention, latent,
recurrent) are set back, the missing experts of the whole window, as the void pass saw them, are read together, and the
window runs again from that layer, until a pass has no miss. The pass that is kept had none: the result is exact.

The layers of mlx-lm's models are called one after the other with the same hidden state handed on; that is checked in every
call, and a model that does otherwise is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .errors import KnobError
from .switch import LayerStream, Run

ALL, AUTO = 0, -1
AUTO_HALF_LIFE = 8  # tokens


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


class Windows:
    """The windows of one engine. `size` is the layers with experts that one check covers; ALL and AUTO are possible.

    AUTO follows the recent share of layers that miss an expert, so that about one layer of a window does.
    """

    def __init__(self, model: nn.Module, streams: dict[str, LayerStream], size: int, run: Run) -> None:
        self._run = run
        self._auto = size == AUTO
        self._miss_share = 0.0
        self._most = len(streams)
        self._size = self._most if size in (ALL, AUTO) else min(size, self._most)
        self._open: list[Call] = []
        self._handed_on: mx.array | None = None
        self._stream_of: dict[int, LayerStream] = {}
        layers = _layers(model, streams, self._stream_of)
        self._first, self._last = layers[0], layers[-1]
        for layer in layers:
            _hook(layer, self)

    def call(self, layer: Any, x: mx.array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        """Stands for `layer(x, *args, **kwargs)`; a decoded token's call becomes part of a window."""
        if layer is self._first:
            self._open.clear()  # a pass that an error cut off may have left some
        elif x is not self._handed_on:
            raise KnobError(f"sync_window is not possible here: {type(layer).__name__} is not in a plain chain; use 1")
        decoding = x.size == x.shape[-1]
        stream = self._stream_of.get(id(layer))
        if stream is not None:
            stream.optimistic = decoding and not stream.complete
        this = Call(layer, x, args, kwargs, _snapshots([*args, *kwargs.values()]) if decoding else [])
        out = this.run()
        if decoding:
            self._open.append(this)
            if layer is self._last or len(self._asking()) >= self._size:
                out = self._checked(out)
                self._open.clear()
        self._handed_on = out
        return out

    def _asking(self) -> list[tuple[int, LayerStream]]:
        """Position in the window and stream of the layers whose experts may be missing."""
        found = ((i, self._stream_of.get(id(call.layer))) for i, call in enumerate(self._open))
        return [(i, stream) for i, stream in found if stream is not None and stream.optimistic]

    def _checked(self, out: mx.array) -> mx.array:
        """The output of a pass over the open window in which no expert was missing; `out` is that of the first pass."""
        run, stats = self._run, self._run.stats
        asking = self._asking()
        if not asking:
            return out
        rows = np.array([stream.number for _, stream in asking])[:, None]
        before = run.slot_of
        shown: np.ndarray | None = None  # what the first void pass saw
        first = passes = 0
        ids = np.empty((len(asking), 0), np.int32)
        while True:
            passes += 1
            with stats.timed("sync_ms"):
                seen = mx.stack([stream.asked.reshape(-1) for _, stream in asking[first:]])
                mx.eval(seen)
            ids = (
                np.concatenate([ids[:first], np.array(seen).astype(np.int32)]) if first else np.array(seen).astype(np.int32)
            )
            missing = (run.slot_of[rows[first:], ids[first:]] < 0).any(axis=1)
            if not missing.any():
                break
            if shown is None:
                before, shown = run.slot_of.copy(), ids
                behind = int(np.argmax(missing)) + 1
            first += int(np.argmax(missing))
            for (_, stream), wanted in zip(asking[first:], ids[first:], strict=True):
                stream.request(wanted)
            for (_, stream), wanted in zip(asking[first:], ids[first:], strict=True):
                stream.settle(wanted)
            out = self._again(asking[first][0])
        if shown is not None and behind < len(asking):
            stats.foreseen += sum(len(np.intersect1d(a, b)) for a, b in zip(shown[behind:], ids[behind:], strict=True))
            stats.foreseen_of += ids[behind:].size
        hits = int((before[rows, ids] >= 0).sum())
        stats.hits += hits
        stats.misses += ids.size - hits
        stats.windows += 1
        stats.passes += passes
        run.use(rows, ids, run.position + 1)
        if self._auto:
            missed = float((before[rows, ids] < 0).any(axis=1).mean())
            new = 1 - 0.5 ** (len(asking) / (AUTO_HALF_LIFE * self._most))
            self._miss_share += new * (missed - self._miss_share)
            self._size = max(1, min(self._most, round(1 / max(self._miss_share, 1e-9))))
        return out

    def _again(self, first: int) -> mx.array:
        """Run the window again from its call number `first`, the caches set back."""
        void, stats = self._open[first:], self._run.stats
        stats.void_layers += len(void)
        hits = stats.hits  # complete layers count theirs in every run
        out = void[0].x
        for call in void:
            for cache, state in call.caches:
                cache.__dict__.update(_copied(state))
            call.x = out
            out = call.run()
        stats.hits = hits
        return out


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
