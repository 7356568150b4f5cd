"""Record: the routers' choices and gate weights of a run, token by token, as a Parquet trace.

One row per routed slot: token (int32, counted over the run), phase, layer (int16, counting layers with experts from 0), rank
(int16, 0 has the largest gate weight), expert (int16), gate_weight (float32), pass (int32, the forward pass from 0), text
(int32, counted over the passes that begin with an empty context). Phases are prefill and decode. A measurement's warm-up has
phases of its own, warm_up_prefill and warm_up_decode, and its tokens have negative numbers. `table` describes the columns of
predictions and the metadata.

A tap in front of every switch records ids and gate weights without a sync; they are read back in bulk after the tokens were
computed. If a layer is computed several times for a token (`sync_window`), the last time counts. The gate weight is the
factor by which the model multiplies an expert's output: the tap wraps the outputs and records the factor. A block that does
anything else with the outputs first (it weights its experts' input, or compiles the sum) is detected before the run. Its
gate weights are null, and its ranks are in the router's order.

The trace holds the router's own choice, always top-k experts per token, before `cold_drop` and `cache_prior` change it.
Plans and replays need that choice; `Stats` counts the experts that were left out or swapped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError
from engine.model.probe import Outputs, weights_outputs
from engine.model.routers import Router
from engine.system import atomic

from .traces.ahead import Ahead, routers_ahead
from .traces.table import Lines, metadata_of, table_of

BULK_TOKENS = 16  # decoded tokens that are read back together; a prefill's chunk is read back by itself


class TraceWriter:
    """Records the routing of everything `model` computes until `finish` or `abandon`.

    `switches` are the paths of the layers' switches, streamed or mlx-lm's own; `ends`: the last of them is in the model's
    last layer. `lossy` are the knobs that the routing depends on, and `ahead` the predictions to record. The caller sets
    `warm_up` while the passes of a warm-up run. Raises `HeadraceError` if `path` cannot be written or `ahead` is not
    possible, before anything is computed.
    """

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, switches: list[str], ends: bool, path: str | Path, source: str, *,
        lossy: Mapping[str, Any] | None = None, ahead: Ahead | None = None,
    ) -> None:  # fmt: skip
        self.path = Path(path).expanduser()
        self.warm_up = False
        modules = dict(model.named_modules())
        routers = routers_ahead(modules, checkpoint, switches, ahead)
        self._partial = atomic.temporary(self.path)
        try:
            if self.path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            self._partial.touch()
        except OSError as e:
            raise HeadraceError(f"the trace {self.path} cannot be written ({e.strerror}); choose another file") from e
        self._metadata = metadata_of(checkpoint, source, lossy or {})
        self._tokens = {False: 0, True: 0}  # outside and inside a warm-up
        self._passes = 0
        self._texts = 0
        self._waiting: list[tuple[Sequence[int], Seen]] = []  # the head of a line (see `Lines`), and what a tap saw
        self._unread = 0  # tokens
        self._lines = Lines()
        self._taps = _put_taps(modules, switches, checkpoint.built.hidden, routers)
        self._before_last = len(switches) - ends

    def passed(self, tokens: int, phase: str, *, last_layer: bool = True, begins: bool = False) -> None:
        """Record an evaluated forward pass over `tokens` tokens; without `last_layer` its last layer was skipped.

        `begins`: the context was empty before."""
        self._tokens[self.warm_up] += tokens
        self._texts += begins or not self._passes
        head = (self._tokens[self.warm_up], phase == "decode", self.warm_up, self._passes, self._texts - 1)
        self._passes += 1
        taps = self._taps if last_layer else self._taps[: self._before_last]
        self._waiting += [((*head, layer), tap.seen) for layer, (*_, tap) in enumerate(taps) if tap.seen.ids.size]
        for *_, tap in self._taps:
            tap.renew()
        self._unread += tokens
        if phase == "prefill" or self._unread >= BULK_TOKENS:
            self._read_back()

    def finish(self) -> None:
        """Remove the taps and write the file."""
        import pyarrow.parquet as pq

        self._take_out()
        self._read_back()
        with atomic.replacing(self.path) as partial:
            pq.write_table(table_of(self._lines, self._tokens[True], self._metadata), partial, compression="zstd")

    def abandon(self) -> None:
        """Remove the taps and write nothing."""
        self._take_out()
        self._partial.unlink(missing_ok=True)

    def _take_out(self) -> None:
        for block, name, tap in self._taps:
            setattr(block, name, tap.switch)

    def _read_back(self) -> None:
        """Read the recorded arrays back to the host."""
        if not self._waiting:
            return
        heads, seen = zip(*self._waiting, strict=True)
        # Fewer rows than tokens if only the last rows are computed. The sequences of a batch follow one another.
        shapes = np.array([(s.ids.size // s.ids.shape[-1], s.ids.shape[-1]) for s in seen])
        experts = _to_host([s.ids for s in seen])
        factors = np.full(len(experts), np.nan, np.float32)
        known = [s.weights for s in seen if s.weights is not None]
        if known:
            mask = np.repeat([s.weights is not None for s in seen], shapes.prod(axis=1))
            factors[mask] = _to_host([w if w.dtype == mx.float32 else w.astype(mx.float32) for w in known])
        predicted = [(line, name, ids) for line, s in enumerate(seen) for name, ids in s.predicted]
        on_host = _to_host([ids for *_, ids in predicted]) if predicted else np.array([])
        parts = np.split(on_host, np.cumsum([ids.size for *_, ids in predicted])[:-1])
        names = [(line, name) for line, name, _ in predicted]
        self._lines.add(np.array(heads, np.int64), shapes, experts, factors, zip(names, parts, strict=False))
        self._waiting, self._unread = [], 0


def _to_host(arrays: Sequence[mx.array]) -> np.ndarray:
    """Return the arrays' numbers, one after the other.

    On the CPU and on Metal the host reads their memory. CUDA would copy each array by itself, so they are joined first.
    """
    if mx.default_device() == mx.Device(mx.cpu) or mx.metal.is_available():
        mx.eval(arrays)
        return np.concatenate([np.array(a).ravel() for a in arrays])
    return np.array(mx.concatenate([a.reshape(-1) for a in arrays]))


class Seen:
    """One tap's last record: expert ids [..., top_k], their outputs' factors if the block multiplies by them, and for a pass
    of one token what the routers of later layers choose for it, each with the name of its column."""

    def __init__(self) -> None:
        self.ids = mx.array([], dtype=mx.uint32)
        self.weights: mx.array | None = None
        self.predicted: list[tuple[str, mx.array]] = []


class Tap(nn.Module):
    """A module in front of a switch. Switch, record and routers are hidden from MLX's parameter trees."""

    switch: Any
    seen: Seen
    weighs: bool
    routers: list[tuple[str, Router]]

    def __init__(self, switch: Any, weighs: bool, routers: list[tuple[str, Router]]) -> None:
        super().__init__()
        for name, value in (("switch", switch), ("seen", Seen()), ("weighs", weighs), ("routers", routers)):
            object.__setattr__(self, name, value)

    def renew(self) -> None:
        """Begin a new record; the last one belongs to its pass."""
        object.__setattr__(self, "seen", Seen())

    def __call__(self, x: mx.array, indices: mx.array) -> Any:
        y = self.switch(x, indices)
        seen = self.seen
        seen.ids, seen.weights = indices, None
        one_token = indices.size == indices.shape[-1]
        seen.predicted = [(name, router(x.reshape(1, 1, -1))) for name, router in self.routers] if one_token else []

        def weighed(weights: mx.array) -> mx.array:
            seen.weights = weights
            return y * weights

        return Outputs(y, weighed) if self.weighs else y


def _put_taps(
    modules: dict[str, Any], switches: list[str], dims: int, routers: list[list[tuple[str, Router]]]
) -> list[tuple[nn.Module, str, Tap]]:
    """Put a tap in front of every switch; return (block, name in it, tap). `dims` is the width of the hidden state."""
    taps = []
    for path, ahead in zip(switches, routers, strict=True):
        owner, _, name = path.rpartition(".")
        block = modules[owner]
        tap = Tap(modules[path], weights_outputs(block, name, dims), ahead)
        setattr(block, name, tap)
        taps.append((block, name, tap))
    return taps
