"""Stats: what the engine counted since it was loaded or since `reset()`: in all, by layer, and by decoded token."""

from __future__ import annotations

import copy
import dataclasses
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

WAITS = ("io_ms", "sync_ms", "quantize_ms")  # never two of them at once


@dataclass
class LayerCounts:
    """The part of one layer in the counters of the same name; `sure` hits of each token are counted with the tokens."""

    hits: int = 0
    misses: int = 0
    reads: int = 0
    bytes_read: int = 0
    sure: int = 0


@dataclass
class Stats:
    """Counters and times of one engine.

    A request is one distinct expert of one layer for one forward pass (decoding: one token), after `cache_prior` and
    `cold_drop` have changed the router's choice. It is a hit if its slot was
    taken when it was asked for, even if a prefetch is still filling it; the wait for that is in `io_ms`. `layers` is
    numbered as the layers with experts are, from 0; it is empty while everything is resident.
    """

    tokens: int = 0
    hits: int = 0
    misses: int = 0
    reads: int = 0
    bytes_read: int = 0  # as they crossed the bus: direct reads are widened to whole pages
    io_ms: float = 0.0  # the main thread waiting for reads
    sync_ms: float = 0.0  # the main thread waiting for the routers' choice, the compute before it included
    quantize_ms: float = 0.0  # bringing experts to another width
    prefetch_issued: int = 0  # experts read on speculation
    prefetch_bytes: int = 0
    prefetch_useful: int = 0  # of those issued, the ones used before they were pushed out
    prefetch_useful_bytes: int = 0
    prefetch_hidden_ms: float = 0.0  # how long the reads of useful guesses had run when their layer asked for them
    foretold_sets: int = 0  # layers (of a token) that prefetch foretold, cached experts included
    foretold_whole: int = 0  # of these, the ones of which it foretold every expert
    foretold_of: int = 0  # experts that these layers used
    foretold: int = 0  # of these, the ones it foretold
    covered: int = 0  # of these, the ones that were in a slot or on their way thanks to prefetch alone
    uncovered: int = 0  # of these, the ones that were missing all the same
    swapped: int = 0  # choices of a token that cache_prior changed to a cached expert
    dropped: int = 0  # choices of a token that cold_drop left out
    dropped_mass: float = 0.0  # their shares of the token's gate weight in a layer, summed
    windows: int = 0  # checks of the routers' choice over several layers (sync_window)
    passes: int = 0  # passes over those windows; one each if nothing was missing
    rejected_layers: int = 0  # layers computed in vain: behind the first that missed an expert
    foreseen: int = 0  # experts that void passes showed for layers behind the miss, and that were used
    foreseen_of: int = 0  # all experts that those layers used
    foreseen_later: int = 0  # of both, what belongs to a window's second and later void passes
    foreseen_later_of: int = 0
    layers: list[LayerCounts] = field(default_factory=list, repr=False)
    _tokens: array[float] = field(default_factory=lambda: array("d"), repr=False)  # wall and WAITS of each decoded token

    @property
    def hit_rate(self) -> float | None:
        """Hits as a share of requests; None before the first request (everything resident: always)."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def prefetch_recall(self) -> float | None:
        """Share of the experts used that prefetch had foretold, cached or not. None if it foretold nothing."""
        return _share(self.foretold, self.foretold_of)

    @property
    def prefetch_exact_set(self) -> float | None:
        """Share of the layers all of whose experts it had foretold: only there no read is left to wait for."""
        return _share(self.foretold_whole, self.foretold_sets)

    @property
    def prefetch_precision(self) -> float | None:
        """Bytes read on speculation and used, as a share of all that were read so. None if none were."""
        return _share(self.prefetch_useful_bytes, self.prefetch_bytes)

    @property
    def prefetch_coverage(self) -> float | None:
        """Share of the misses that prefetch took away. None if there would have been none."""
        return _share(self.covered, self.covered + self.uncovered)

    @property
    def prefetch_wasted_bytes(self) -> int:
        """Bytes read on speculation and not used so far."""
        return self.prefetch_bytes - self.prefetch_useful_bytes

    @property
    def dropped_share(self) -> float | None:
        """Share of the gate weight that cold_drop left out, of all tokens and layers. None if nothing was streamed."""
        return _share(self.dropped_mass, self.tokens * len(self.layers))

    @property
    def passes_per_window(self) -> float | None:
        """Passes that a window took, 1 if nothing was ever missing. None if there were no windows."""
        return _share(self.passes, self.windows)

    @property
    def window_prediction_recall(self) -> float | None:
        """Share of the experts used behind a miss that the void passes had shown."""
        return _share(self.foreseen, self.foreseen_of)

    @property
    def foreseen_by_pass(self) -> tuple[float | None, float | None]:
        """The same of a window's first void pass, and of its later ones, which come nearer to the truth."""
        first = _share(self.foreseen - self.foreseen_later, self.foreseen_of - self.foreseen_later_of)
        return first, _share(self.foreseen_later, self.foreseen_later_of)

    def as_dict(self) -> dict[str, Any]:
        """The counters in all and what follows from them."""
        derived = [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        return {name: getattr(self, name) for name in (*_COUNTERS, *derived)}

    def by_layer(self) -> list[dict[str, Any]]:
        """One row a layer, ready for pandas: layer, hits, misses, hit_rate, reads, bytes_read."""
        rows = []
        for number, c in enumerate(self.layers):
            hits = c.hits + c.sure * self.tokens
            rate = _share(hits, hits + c.misses)
            rows.append(
                {
                    "layer": number, "hits": hits, "misses": c.misses, "hit_rate": rate, "reads": c.reads,
                    "bytes_read": c.bytes_read,
                }
            )  # fmt: skip
        return rows

    def by_token(self) -> dict[str, np.ndarray]:
        """Milliseconds of each decoded token, float64 [tokens]: wall_ms, io_ms, sync_ms, quantize_ms, compute_ms.

        Wall is the forward pass from the token's id to its evaluated logits; compute is what is left of it when the waits
        are taken off. Where the device queues its work, part of the computing is waited for in `sync_ms`.
        """
        ms = np.array(self._tokens).reshape(-1, 1 + len(WAITS)).T
        compute = np.maximum(ms[0] - ms[1:].sum(axis=0), 0)  # the sums are rounded
        return dict(zip(("wall_ms", *WAITS, "compute_ms"), (*ms, compute), strict=True))

    def count_uses(self, layer: int, hits: int, misses: int) -> None:
        self.hits += hits
        self.misses += misses
        counts = self.layers[layer]
        counts.hits += hits
        counts.misses += misses

    def count_read(self, layer: int | None, nbytes: int) -> None:
        """One read call. Not safe to call from several threads at once."""
        self.reads += 1
        self.bytes_read += nbytes
        if layer is not None:
            self.layers[layer].reads += 1
            self.layers[layer].bytes_read += nbytes

    def copy(self) -> Stats:
        return copy.deepcopy(self)

    def reset(self) -> None:
        for name in _COUNTERS:
            setattr(self, name, getattr(Stats, name))
        self.layers = [LayerCounts(sure=counts.sure) for counts in self.layers]
        del self._tokens[:]

    def add(self, other: Stats, *, since: Stats) -> None:
        """Add what `other` has counted beyond `since`, an earlier copy of it."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name) - getattr(since, name))
        for mine, now, then in zip(self.layers, other.layers, since.layers, strict=True):
            for name in ("hits", "misses", "reads", "bytes_read"):
                setattr(mine, name, getattr(mine, name) + getattr(now, name) - getattr(then, name))
        self._tokens += other._tokens[len(since._tokens) :]

    @contextmanager
    def timed_token(self) -> Iterator[None]:
        """Note how long a decoded token takes, and how much of that it waits."""
        before = [getattr(self, name) for name in WAITS]
        started = time.perf_counter()
        yield
        wall = (time.perf_counter() - started) * 1e3
        self._tokens.extend((wall, *(getattr(self, name) - then for name, then in zip(WAITS, before, strict=True))))

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the milliseconds spent inside to the counter `name`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + (time.perf_counter() - started) * 1e3)


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


_COUNTERS = tuple(f.name for f in dataclasses.fields(Stats) if f.default is not dataclasses.MISSING)
