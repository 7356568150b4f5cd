"""Record: the routers' choices and gate weights of a run, token by token, as a Parquet trace.

One row per routed slot: token (int32, counted over the run), phase (prefill or decode), layer (int16, counting layers with
experts from 0), rank (int16, 0 has the largest gate weight), expert (int16), gate_weight (float32). Key-value metadata:
model, num_experts, num_layers, top_k, source.

A tap in front of every switch records ids and gate weights without a sync; they are read back in bulk after the tokens were
computed. If a layer is computed several times for a token (`sync_window`), the last time counts. The gate weight is the
factor by which the model multiplies an expert's output: the tap wraps the outputs and records the factor. A block that does
anything else with the outputs first (it weights its experts' input, or compiles the sum) is detected before the run. Its
gate weights are null, and its ranks are in the router's order.

The trace holds the router's own choice, always top-k experts per token, before `cold_drop` and `cache_prior` change it.
Plans and replays need that choice; `Stats` counts the experts that were left out or swapped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError
from engine.model.probe import Outputs, weights_outputs
from engine.system import atomic

BULK_TOKENS = 16  # decoded tokens that are read back together; a prefill's chunk is read back by itself


class TraceWriter:
    """Records the routing of everything `model` computes until `finish` or `abandon`.

    `switches` are the paths of the layers' switches, streamed or mlx-lm's own; `ends`: the last of them is in the model's
    last layer. Raises `HeadraceError` if `path` cannot be written, before anything is computed.
    """

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, switches: list[str], ends: bool, path: str | Path, source: str
    ) -> None:
        self.path = Path(path).expanduser()
        self._partial = atomic.temporary(self.path)
        try:
            if self.path.is_dir():
                raise IsADirectoryError(0, "it is a folder")
            self._partial.touch()
        except OSError as e:
            raise HeadraceError(f"the trace {self.path} cannot be written ({e.strerror}); choose another file") from e
        self._metadata = {
            "model": checkpoint.name,
            "num_experts": str(max(layer.experts for layer in checkpoint.layers)),
            "num_layers": str(len(checkpoint.layers)),
            "top_k": str(checkpoint.top_k),
            "source": f"headrace, {source}; layer 0 is {checkpoint.layers[0].block}",
        }
        self._tokens = 0
        self._waiting: list[tuple[int, int, str, mx.array, mx.array | None]] = []  # end token, layer, phase, ids, weights
        self._waiting_since = 0
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # see `_read_back`
        self._taps = _put_taps(model, switches, checkpoint.built.hidden)
        self._seen = [tap.seen for *_, tap in self._taps]
        self._before_last = len(switches) - ends

    def passed(self, tokens: int, phase: str, *, last_layer: bool = True) -> None:
        """Record an evaluated forward pass over `tokens` tokens; without `last_layer` its last layer was skipped."""
        self._tokens += tokens
        seen = self._seen if last_layer else self._seen[: self._before_last]
        self._waiting += [(self._tokens, layer, phase, s.ids, s.weights) for layer, s in enumerate(seen)]
        if phase == "prefill" or self._tokens - self._waiting_since >= BULK_TOKENS:
            self._read_back()

    def finish(self) -> None:
        """Remove the taps and write the file."""
        import pyarrow.parquet as pq

        self._take_out()
        self._read_back()
        with atomic.replacing(self.path) as partial:
            pq.write_table(self._table(), partial, compression="zstd")

    def abandon(self) -> None:
        """Remove the taps and write nothing."""
        self._take_out()
        self._partial.unlink(missing_ok=True)

    def _take_out(self) -> None:
        for block, name, tap in self._taps:
            setattr(block, name, tap.switch)

    def _read_back(self) -> None:
        """Read the recorded arrays back to the host.

        Appends one line per array of ids (first token, layer, is decode, rows, top-k), then all ids and all weights (NaN
        where unknown), flat and in the same order.
        """
        if not self._waiting:
            return
        afters, layers, phases, ids, weights = zip(*self._waiting, strict=True)
        # Fewer rows than tokens if only the last rows are computed. The sequences of a batch follow one another.
        shapes = np.array([(i.size // i.shape[-1], i.shape[-1]) for i in ids])
        decode = [phase == "decode" for phase in phases]
        lines = np.column_stack([np.array(afters) - shapes[:, 0], layers, decode, shapes])
        experts = _to_host(ids)
        factors = np.full(len(experts), np.nan, np.float32)
        known = [w for w in weights if w is not None]
        if known:
            mask = np.repeat([w is not None for w in weights], shapes.prod(axis=1))
            factors[mask] = _to_host([w if w.dtype == mx.float32 else w.astype(mx.float32) for w in known])
        self._parts.append((lines, experts.astype(np.int16), factors))
        self._waiting, self._waiting_since = [], self._tokens

    def _table(self) -> Any:
        """Return all rows, ordered by token, layer and rank."""
        import pyarrow as pa

        empty = (np.zeros((0, 5), np.int64), np.zeros(0, np.int16), np.zeros(0, np.float32))
        lines, expert, weight = (np.concatenate(part) for part in zip(empty, *self._parts, strict=True))
        sizes = lines[:, 3] * lines[:, 4]
        first, layer, decode, _, top_k = np.repeat(lines, sizes, axis=0).T
        within = np.arange(len(expert)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        token, place = first + within // top_k, within % top_k
        order = np.lexsort((place, -np.nan_to_num(weight), layer, token))
        columns = {
            "token": pa.array(token[order].astype(np.int32)),
            "phase": pa.array(np.where(decode[order], "decode", "prefill"), pa.large_string()),
            "layer": pa.array(layer[order].astype(np.int16)),
            "rank": pa.array(place.astype(np.int16)[np.lexsort((place, layer, token))]),
            "expert": pa.array(expert[order]),
            "gate_weight": pa.array(weight[order], pa.float32(), from_pandas=True),  # NaN becomes null
        }
        return pa.table(columns).replace_schema_metadata(self._metadata)


def _to_host(arrays: Sequence[mx.array]) -> np.ndarray:
    """Return the arrays' numbers, one after the other.

    On the CPU and on Metal the host reads their memory. CUDA would copy each array by itself, so they are joined first.
    """
    if mx.default_device() == mx.Device(mx.cpu) or mx.metal.is_available():
        mx.eval(arrays)
        return np.concatenate([np.array(a).ravel() for a in arrays])
    return np.array(mx.concatenate([a.reshape(-1) for a in arrays]))


class Seen:
    """One tap's last record: expert ids [..., top_k], and their outputs' factors if the block multiplies by them."""

    def __init__(self) -> None:
        self.ids = mx.array([], dtype=mx.uint32)
        self.weights: mx.array | None = None


class Tap(nn.Module):
    """A module in front of a switch. Switch and record are hidden from MLX's parameter trees."""

    switch: Any
    seen: Seen
    weighs: bool

    def __init__(self, switch: Any, weighs: bool) -> None:
        super().__init__()
        for name, value in (("switch", switch), ("seen", Seen()), ("weighs", weighs)):
            object.__setattr__(self, name, value)

    def __call__(self, x: mx.array, indices: mx.array) -> Any:
        y = self.switch(x, indices)
        self.seen.ids, self.seen.weights = indices, None

        def weighed(weights: mx.array) -> mx.array:
            self.seen.weights = weights
            return y * weights

        return Outputs(y, weighed) if self.weighs else y


def _put_taps(model: nn.Module, switches: list[str], dims: int) -> list[tuple[nn.Module, str, Tap]]:
    """Put a tap in front of every switch; return (block, name in it, tap). `dims` is the width of the hidden state."""
    modules = dict(model.named_modules())
    taps = []
    for path in switches:
        owner, _, name = path.rpartition(".")
        block = modules[owner]
        tap = Tap(modules[path], weights_outputs(block, name, dims))
        setattr(block, name, tap)
        taps.append((block, name, tap))
    return taps
