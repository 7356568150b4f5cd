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

import contextlib
import re
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .errors import KnobError, ReadError
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
        decoding = x.size == x.shape[-1] and not self._run.unused
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
        before: np.ndarray | None = None  # what was cached when the window began
        behind, first, passes = len(asking), 0, 1
        ids = self._choices(asking)
        while (missing := (run.slot_of[rows[first:], ids[first:]] < 0).any(axis=1)).any():
            passes += 1
            first += int(np.argmax(missing))
            shown = self.oracle(ids, first, passes - 1)
            if before is None:
                before, behind, foretold = run.slot_of.copy(), first + 1, shown
            out = self._again(asking[first:], shown[first:])
            ids = np.concatenate([ids[:first], self._choices(asking[first:])])
        stats.windows += 1
        stats.passes += passes
        run.use(rows, ids, run.position + 1)
        missed = 0 if before is None else int((before[rows, ids] < 0).sum())
        stats.hits += ids.size - missed
        stats.misses += missed
        if before is not None:
            pairs = zip(foretold[behind:], ids[behind:], strict=True)
            stats.foreseen += sum(len(np.intersect1d(a, b)) for a, b in pairs)
            stats.foreseen_of += ids[behind:].size
        if self._auto:
            share = 0.0 if before is None else float((before[rows, ids] < 0).any(axis=1).mean())
            new = 1 - 0.5 ** (len(asking) / (AUTO_HALF_LIFE * self._most))
            self._miss_share += new * (share - self._miss_share)
            self._size = max(1, min(self._most, round(1 / max(self._miss_share, 1e-9))))
        return out

    def oracle(self, ids: np.ndarray, first: int, void_pass: int) -> np.ndarray:
        """What may be believed of the choices `ids` [layers, top-k] of the window's void pass number `void_pass`; up to
        layer `first` they are true. All of it; a benchmark whose routing does not depend on the hidden state believes less.
        """
        return ids

    def _choices(self, asking: list[tuple[int, LayerStream]]) -> np.ndarray:
        """What the layers chose in the pass just queued, int32 [layers, top-k]: the one sync of a pass."""
        with self._run.stats.timed("sync_ms"):
            chosen = mx.stack([stream.asked for _, stream in asking])
            mx.eval(chosen)
        return np.array(chosen).astype(np.int32)

    def _again(self, asking: list[tuple[int, LayerStream]], wanted: np.ndarray) -> mx.array:
        """Run the window again from the first of the layers `asking`, with the caches set back and `wanted` read.

        A layer is queued as soon as its experts are there: it is computed while those of the layers behind it are read.
        """
        stats = self._run.stats
        first = asking[0][0]
        void = self._open[first:]
        waits = {position: (stream, ids) for (position, stream), ids in zip(asking, wanted, strict=True)}
        for stream, ids in waits.values():
            stream.request(ids)
        stats.void_layers += len(void)
        out = void[0].x
        try:
            for position, call in enumerate(void, start=first):
                if position in waits:
                    stream, ids = waits.pop(position)
                    if not stream.settled:
                        mx.async_eval(out)
                    stream.settle(ids)
                for cache, state in call.caches:
                    cache.__dict__.update(_copied(state))
                call.x = out
                out = call.run()
        finally:
            for stream, ids in waits.values():  # after an error: what is on its way must not pass for a hit later
                with contextlib.suppress(ReadError):
                    stream.settle(ids)
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
