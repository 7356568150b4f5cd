"""Stats: the engine's counters since it was loaded or since `reset()`: in total, by layer, and by decoded token.

The counters of a layer are one row of an array, which the native code of the engine increases.
"""

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

WAITS = ("io_ms", "sync_ms", "quantize_ms")  # they never overlap


HITS, MISSES, READS, BYTES, LAYERS_MISSED = range(5)  # columns of `Stats.layers`


@dataclass
class Stats:
    """Counters and times of one engine.

    A request is one distinct expert of one layer for one forward pass (decoding: one token), after `cache_prior` and
    `cold_drop` have changed the router's choice. It is a hit if the expert has a slot at the request, even if a prefetch is
    still filling it; that wait counts in `io_ms`.

    `layers`, int64 [layers, 5], has the hits, misses, reads, bytes and passes with a miss of each layer with experts; it is
    empty while everything is resident. `sure`, int64 [layers], are the hits per token of the layers whose experts are all
    cached, which are counted by the number of tokens.
    """

    tokens: int = 0
    io_ms: float = 0.0  # time that the main thread waits for reads
    sync_ms: float = 0.0  # time that the main thread waits for the routers' choice, including the computation before it
    quantize_ms: float = 0.0  # time to quantize experts to another width
    prefetch_issued: int = 0  # experts read speculatively
    prefetch_bytes: int = 0
    prefetch_useful: int = 0  # experts read speculatively and used before eviction
    prefetch_useful_bytes: int = 0
    prefetch_hidden_ms: float = 0.0  # time that useful speculative reads had run when their layer needed them
    predicted_sets: int = 0  # predictions of a layer's experts for a token, cached experts included
    predicted_exact_sets: int = 0  # predictions that include every expert used
    predicted_of: int = 0  # experts used by the layers with a prediction
    predicted: int = 0  # experts used and predicted
    covered: int = 0  # predicted experts in a slot or on their way only because of prefetch
    uncovered: int = 0  # experts used by the layers with a prediction and still missing
    swapped: int = 0  # choices of a token that cache_prior moved to a cached expert
    dropped: int = 0  # choices of a token that cold_drop omitted
    dropped_mass: float = 0.0  # sum of their shares of the token's gate weight in a layer
    windows: int = 0  # speculative windows: checks of the routers' choice over several layers (sync_window)
    passes: int = 0  # passes over those windows; one each if nothing was missing
    rejected_layers: int = 0  # layers computed in rejected passes, after the first one that missed an expert
    window_predicted: int = 0  # experts that rejected passes predicted for layers after the miss, and that were used
    window_predicted_of: int = 0  # all experts that those layers used
    window_predicted_later: int = 0  # part of window_predicted from a window's second and later rejected passes
    window_predicted_later_of: int = 0  # part of window_predicted_of from these passes
    layers: np.ndarray = field(default_factory=lambda: np.zeros((0, 5), np.int64), repr=False)
    sure: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    _tokens: array[float] = field(default_factory=lambda: array("d"), repr=False)  # ms: wall, then WAITS, per token

    @property
    def hits(self) -> int:
        return int(self.layers[:, HITS].sum()) + self.tokens * int(self.sure.sum())

    @property
    def misses(self) -> int:
        return int(self.layers[:, MISSES].sum())

    @property
    def layers_missed(self) -> int:
        """Passes of a layer in which at least one expert was missing, over all layers."""
        return int(self.layers[:, LAYERS_MISSED].sum())

    @property
    def reads(self) -> int:
        """Blocks read."""
        return int(self.layers[:, READS].sum())

    @property
    def bytes_read(self) -> int:
        """Bytes transferred: direct reads are widened to whole pages."""
        return int(self.layers[:, BYTES].sum())

    @property
    def hit_rate(self) -> float | None:
        """Hits as a share of requests; None without requests, as when everything is resident."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def prefetch_recall(self) -> float | None:
        """Prediction recall: share of the experts used that prefetch predicted, cached or not. None without predictions."""
        return _share(self.predicted, self.predicted_of)

    @property
    def prefetch_exact_set(self) -> float | None:
        """Exact-set rate: share of predictions that include every expert used; only then no read is left to wait for."""
        return _share(self.predicted_exact_sets, self.predicted_sets)

    @property
    def prefetch_precision(self) -> float | None:
        """Bytes read speculatively and used, as a share of all bytes read speculatively. None if there were none."""
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
        """Share of the gate weight that cold_drop omitted, over all tokens and layers. None if nothing was streamed."""
        return _share(self.dropped_mass, self.tokens * len(self.layers))

    @property
    def passes_per_window(self) -> float | None:
        """Passes per window; 1 if nothing was ever missing. None without windows."""
        return _share(self.passes, self.windows)

    @property
    def window_prediction_recall(self) -> float | None:
        """Prediction recall of rejected passes: share of the experts used after a miss that they predicted."""
        return _share(self.window_predicted, self.window_predicted_of)

    @property
    def window_recall_by_pass(self) -> tuple[float | None, float | None]:
        """The same for a window's first rejected pass and for its later ones, which predict better."""
        predicted = self.window_predicted - self.window_predicted_later
        first = _share(predicted, self.window_predicted_of - self.window_predicted_later_of)
        return first, _share(self.window_predicted_later, self.window_predicted_later_of)

    def as_dict(self) -> dict[str, Any]:
        """The total counters and the figures derived from them."""
        derived = [name for name, value in vars(type(self)).items() if isinstance(value, property)]
        return {name: getattr(self, name) for name in (*_COUNTERS, *derived)}

    def by_layer(self) -> list[dict[str, Any]]:
        """One row per layer, for a data frame: layer, hits, misses, hit_rate, reads, bytes_read."""
        rows = []
        for number, ((hits, misses, reads, nbytes, _), sure) in enumerate(
            zip(self.layers.tolist(), self.sure.tolist(), strict=True)
        ):
            hits += sure * self.tokens
            rate = _share(hits, hits + misses)
            row = {"layer": number, "hits": hits, "misses": misses, "hit_rate": rate, "reads": reads, "bytes_read": nbytes}
            rows.append(row)
        return rows

    def by_token(self) -> dict[str, np.ndarray]:
        """Milliseconds of each decoded token, float64 [tokens]: wall_ms, io_ms, sync_ms, quantize_ms, compute_ms.

        Wall is the forward pass from the token's id to its evaluated logits; compute is wall minus the waits. If the device
        queues its work, `sync_ms` includes part of the computation.
        """
        ms = np.array(self._tokens).reshape(-1, 1 + len(WAITS)).T
        compute = np.maximum(ms[0] - ms[1:].sum(axis=0), 0)  # rounding can make it negative
        return dict(zip(("wall_ms", *WAITS, "compute_ms"), (*ms, compute), strict=True))

    def count_layers(self, number: int) -> None:
        """Start to count `number` layers."""
        self.layers, self.sure = np.zeros((number, 5), np.int64), np.zeros(number, np.int64)

    def count_uses(self, layer: int, hits: int, misses: int) -> None:
        self.layers[layer, HITS] += hits
        self.layers[layer, MISSES] += misses
        self.layers[layer, LAYERS_MISSED] += misses > 0

    def copy(self) -> Stats:
        return copy.deepcopy(self)

    def reset(self) -> None:
        for name in _COUNTERS:
            setattr(self, name, getattr(Stats, name))
        self.layers[:] = 0  # the native code has its address
        del self._tokens[:]

    def restore(self, earlier: Stats) -> None:
        """Undo what was counted since the copy `earlier`; the times of decoded tokens stay."""
        for name in _COUNTERS:
            setattr(self, name, getattr(earlier, name))
        self.layers[:] = earlier.layers

    def add(self, other: Stats, *, since: Stats) -> None:
        """Add the counts of `other` since its earlier copy `since`."""
        for name in _COUNTERS:
            setattr(self, name, getattr(self, name) + getattr(other, name) - getattr(since, name))
        self.layers = self.layers + other.layers - since.layers
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
