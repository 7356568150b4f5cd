"""Stats: the engine's counters since loading or the last `reset()`, in total, per layer, and per decoded token."""

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

WAITS = ("io_ms", "sync_ms", "quantize_ms")  # waits that never overlap


@dataclass
class LayerCounts:
    """One layer's part of the counters with the same names. `sure`: hits per token of a layer that holds all experts."""

    hits: int = 0
    misses: int = 0
    reads: int = 0
    bytes_read: int = 0
    sure: int = 0


@dataclass
class Stats:
    """Counters and times of one engine.

    A request is one distinct expert of one layer for one forward pass (one token in decoding), after `cache_prior` and
    `cold_drop` have changed the router's choice. It is a hit if the expert has a slot when it is requested, even if a
    prefetch is still reading it; the wait for that read is in `io_ms`. `layers` counts layers with experts from 0; it is
    empty while everything is resident.
    """

    tokens: int = 0
    hits: int = 0
    misses: int = 0
    reads: int = 0
    bytes_read: int = 0  # bytes transferred; direct reads are widened to whole pages
    io_ms: float = 0.0  # time the main thread waits for reads
    sync_ms: float = 0.0  # time the main thread waits for the routers' choices, including the computation before them
    quantize_ms: float = 0.0  # time to bring experts to another width
    prefetch_issued: int = 0  # experts read speculatively
    prefetch_bytes: int = 0
    prefetch_useful: int = 0  # experts read speculatively and used before their eviction
    prefetch_useful_bytes: int = 0
    prefetch_hidden_ms: float = 0.0  # time that useful speculative reads had run when their layer requested them
    predicted_sets: int = 0  # layers (per token) that prefetch predicted, cached experts included
    predicted_exactly: int = 0  # layers of which prefetch predicted every expert
    predicted_of: int = 0  # experts used by the predicted layers
    predicted: int = 0  # experts used and predicted
    covered: int = 0  # experts used that had a slot only because of prefetch
    uncovered: int = 0  # experts used by the predicted layers that were missing nevertheless
    swapped: int = 0  # experts of a token's choice that cache_prior replaced by cached ones
    dropped: int = 0  # experts of a token's choice that cold_drop left out
    dropped_mass: float = 0.0  # sum of the dropped experts' shares of their token's gate weight in a layer
    windows: int = 0  # checks of the routers' choices over several layers (sync_window)
    passes: int = 0  # passes over those windows; one per window if nothing was missing
    rejected_layers: int = 0  # layers computed in rejected passes, after the first layer that missed an expert
    window_predicted: int = 0  # experts used after a window's miss that its rejected passes had predicted
    window_predicted_of: int = 0  # experts used after a window's miss
    later_predicted: int = 0  # part of window_predicted from a window's second and later rejected passes
    later_predicted_of: int = 0
    layers: list[LayerCounts] = field(default_factory=list, repr=False)
    _tokens: array[float] = field(default_factory=lambda: array("d"), repr=False)  # wall time and WAITS of each token

    @property
    def hit_rate(self) -> float | None:
        """Hits as a share of requests; None without a request, which is always so while everything is resident."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def prefetch_recall(self) -> float | None:
        """Share of the experts used that prefetch predicted, cached or not. None without predictions."""
        return _share(self.predicted, self.predicted_of)

    @property
    def prefetch_exact_set(self) -> float | None:
        """Share of the predicted layers of which every expert was predicted; only these need no further read."""
        return _share(self.predicted_exactly, self.predicted_sets)

    @property
    def prefetch_precision(self) -> float | None:
        """Share of the speculatively read bytes that were used. None if none were read."""
        return _share(self.prefetch_useful_bytes, self.prefetch_bytes)

    @property
    def prefetch_coverage(self) -> float | None:
        """Share of the misses that prefetch avoided. None if there were none to avoid."""
        return _share(self.covered, self.covered + self.uncovered)

    @property
    def prefetch_wasted_bytes(self) -> int:
        """Bytes read speculatively and not used so far."""
        return self.prefetch_bytes - self.prefetch_useful_bytes

    @property
    def dropped_share(self) -> float | None:
        """Share of the gate weight of all tokens and layers that cold_drop left out. None if nothing was streamed."""
        return _share(self.dropped_mass, self.tokens * len(self.layers))

    @property
    def passes_per_window(self) -> float | None:
        """Passes per window, 1 if nothing was ever missing. None without windows."""
        return _share(self.passes, self.windows)

    @property
    def window_prediction_recall(self) -> float | None:
        """Share of the experts used after a window's miss that its rejected passes had predicted."""
        return _share(self.window_predicted, self.window_predicted_of)

    @property
    def window_recall_by_pass(self) -> tuple[float | None, float | None]:
        """The recall of windows' first rejected passes, and of their later ones, which are closer to the final choice."""
        first = _share(self.window_predicted - self.later_predicted, self.window_predicted_of - self.later_predicted_of)
        return first, _share(self.later_predicted, self.later_predicted_of)

    def as_dict(self) -> dict[str, Any]:
        """Return the total counters and the values derived from them."""
        derived = [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        return {name: getattr(self, name) for name in (*_COUNTERS, *derived)}

    def by_layer(self) -> list[dict[str, Any]]:
        """Return one row per layer, ready for pandas: layer, hits, misses, hit_rate, reads, bytes_read."""
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
        """Return the milliseconds of each decoded token, float64 [tokens]: wall, io, sync, quantize and compute, each _ms.

        Wall time is the forward pass from the token's id to its evaluated logits; compute is wall time minus the waits. On a
        device that queues its work, part of the computation is waited for in `sync_ms`.
        """
        ms = np.array(self._tokens).reshape(-1, 1 + len(WAITS)).T
        compute = np.maximum(ms[0] - ms[1:].sum(axis=0), 0)  # rounding can make the difference negative
        return dict(zip(("wall_ms", *WAITS, "compute_ms"), (*ms, compute), strict=True))

    def count_uses(self, layer: int, hits: int, misses: int) -> None:
        self.hits += hits
        self.misses += misses
        counts = self.layers[layer]
        counts.hits += hits
        counts.misses += misses

    def count_read(self, layer: int | None, nbytes: int) -> None:
        """Count one read call. Not thread-safe."""
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
        """Add the difference between `other` and `since`, an earlier copy of it."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name) - getattr(since, name))
        for mine, now, then in zip(self.layers, other.layers, since.layers, strict=True):
            for name in ("hits", "misses", "reads", "bytes_read"):
                setattr(mine, name, getattr(mine, name) + getattr(now, name) - getattr(then, name))
        self._tokens += other._tokens[len(since._tokens) :]

    @contextmanager
    def timed_token(self) -> Iterator[None]:
        """Record the wall time of a decoded token and its waits."""
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
