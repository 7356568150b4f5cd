"""Prefetch: what the next layers will ask for, foretold while this one is at work, and read before they ask.

`stale_gate` asks the next layers' own routers, with this layer's input: stale by as many layers. It
only ever guesses: a guess pushes out no warmer expert, demand reads overtake it, and what was foretold is checked against
what came (`Stats`). Decoding only: a prefill wants nearly every expert anyway.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from engine.stats import Stats

from .gating import asking, widened

if TYPE_CHECKING:
    from .layer import LayerStream

Router = Callable[[mx.array], mx.array]


@dataclass
class Foretelling:
    """Expert ids on the device, not evaluated yet, that layer `of` will probably choose."""

    of: Prefetch
    ids: mx.array


class Prefetch:
    """One layer's part: `ahead` are the layers that it foretells, `router` how others foretell it."""

    def __init__(self, stream: LayerStream, router: Router, stats: Stats) -> None:
        self.ahead: list[Prefetch] = []
        self._stream = stream
        self._router = router
        self._stats = stats
        self.forget()

    def forget(self) -> None:
        """Begin as if no token had been before."""
        self._foretold: np.ndarray | None = None

    def ask(self, x: mx.array) -> list[Foretelling]:
        """What the layers ahead will choose, by this layer's input `x` of one token."""
        return [Foretelling(p, p._router(x.reshape(1, 1, -1))) for p in self.ahead]

    def hear(self, foretellings: list[Foretelling]) -> None:
        """Note what was foretold, once it is evaluated."""
        for f in foretellings:
            ids = np.array(f.ids).reshape(-1).astype(np.int32)
            told = f.of._foretold
            f.of._foretold = ids if told is None else np.union1d(told, ids)

    def check(self, ids: np.ndarray, slot_of: np.ndarray, guessed: Container[int]) -> None:
        """Compare what was foretold for this layer with the `ids` [..., top-k] that it chose."""
        chosen = ids.reshape(-1)
        if ids.size == ids.shape[-1] and self._foretold is not None:
            right = int(np.isin(chosen, self._foretold).sum())
            self._stats.foretold_sets += 1
            self._stats.foretold_whole += right == chosen.size
            self._stats.foretold_of += chosen.size
            self._stats.foretold += right
            self._stats.uncovered += int((slot_of[chosen] < 0).sum())
            self._stats.covered += sum(e in guessed for e in chosen.tolist())
        self._foretold = None

    def read_ahead(self, foretellings: list[Foretelling]) -> None:
        """Start to read what was foretold."""
        for f in foretellings:
            if f.of is not self and f.of._foretold is not None:
                f.of._stream.guess(f.of._foretold)


def prefetch_of(
    streams: list[tuple[LayerStream, Any, str]], *, depth: int, top_k: int, width: float, stats: Stats
) -> str | None:
    """Set up prefetch between the layers `streams`: each with its block and the switch's name in it, in order.

    Returns why it is not possible, or None.
    """
    wide = math.ceil(width * top_k)
    for stream, block, name in streams:
        router = router_of(block, name, top_k, wide, stream.banks[0].inner)
        if router is None:
            return f"the router of {type(block).__name__} cannot be asked for {wide} experts ahead of time"
        stream.prefetch = Prefetch(stream, router, stats)
    for number, (stream, _, _) in enumerate(streams):
        others = streams[number : number + 1] if depth == 0 else streams[number + 1 : number + 1 + depth]
        assert stream.prefetch is not None
        stream.prefetch.ahead = [s.prefetch for s, _, _ in others if s.prefetch is not None]
    return None


def router_of(block: Any, switch: str, top_k: int, wide: int, sample: Any) -> Router | None:
    """A function from a block's input [1, 1, dims] to the `wide` expert ids that its own router ranks first, or None."""
    copied = block if wide == top_k else widened(block, top_k, wide)
    if copied is None:
        return None
    ask = asking(copied, switch, weigh=False)
    first = sample["gate_proj" if "gate_proj" in sample else "fc1"]
    try:
        ids = ask(mx.zeros((1, 1, first.input_dims))).ids
    except Exception:  # whatever a foreign block does not like: it cannot be asked
        return None
    return (lambda x: ask(x).ids) if ids.size == wide else None
