"""Stored experts: the byte ranges in a checkpoint's files of the experts that `trace` has followed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.checkpoint.dtypes import ITEM_BYTES, MLX_TYPES
from engine.checkpoint.experts import ExpertLayer, ExpertTensor
from engine.checkpoint.files.headers import Entry
from engine.checkpoint.fingerprint import State, folder_state

from .parts import in_items, joined
from .trace import Taken, trace

_last: dict[tuple[Path, State], Experts] = {}  # a study opens a checkpoint before each setting
DTYPES = {mlx: name for name, mlx in MLX_TYPES.items()}


@dataclass(frozen=True)
class Experts:
    """The experts that were followed. `sources`: block -> the stored tensors that hold them; `shared`: block -> one of these
    that holds more than the routed experts; `computed`: block -> a tensor that has other values than the files; `refused`:
    why mlx-lm cannot open the checkpoint, None if it can."""

    layers: tuple[ExpertLayer, ...]
    sources: Mapping[str, frozenset[str]]
    shared: Mapping[str, str]
    computed: Mapping[str, str]
    refused: str | None


def follow(path: Path, tensors: Mapping[str, Entry]) -> Experts:
    """Follow the experts of the checkpoint in the folder `path`, whose files hold `tensors`. The last result is kept."""
    key = path, folder_state(path)
    if key not in _last:
        _last.clear()
        _last[key] = _follow(path, tensors)
    return _last[key]


def _follow(path: Path, tensors: Mapping[str, Entry]) -> Experts:
    found = trace(path, {name: (entry.shape, entry.dtype, ITEM_BYTES[entry.dtype]) for name, entry in tensors.items()})
    layers, sources, shared, computed = [], {}, {}, {}
    for block, rules in found.layers.items():
        other = next((name for name, t in rules.items() if not _can_stream(name, t)), None)
        if other is not None or not rules:
            computed[block] = other or "weights"
            continue
        taken = [t for t in rules.values() if t is not None]
        layers.append(ExpertLayer(block, tuple(sorted((_stored(t, tensors) for t in taken), key=lambda t: t.name))))
        sources[block] = frozenset(name for t in taken for name in t.sources)
        for t in taken:
            if len(t.sources) == 1 and tensors[t.sources[0]].shape[0] > len(t.slabs) > 1:
                shared[block] = t.sources[0]
    return Experts(tuple(layers), sources, shared, computed, found.refused)


def _can_stream(name: str, taken: Taken | None) -> bool:
    """Whether the engine computes with such a tensor; it has no scale for a whole expert."""
    return taken is not None and taken.dtype in DTYPES and not name.endswith(".global_scale")


def _stored(taken: Taken, tensors: Mapping[str, Entry]) -> ExpertTensor:
    """The place of every expert's tensor in the files."""
    dtype, experts = DTYPES[taken.dtype], len(taken.slabs)
    entries = [tensors[name] for name in taken.sources]
    first = entries[0]
    shape = first.shape if len(entries) == experts > 1 else first.shape[1:]
    items = in_items(shape, ITEM_BYTES[first.dtype], taken.item_bytes)
    assert items is not None  # the short shape has the same remainders
    slab = math.prod(items) * taken.item_bytes
    entries = entries if len(entries) == experts else entries * experts
    file = np.array([entry.file for entry in entries], np.int32)
    offset = np.array([entry.offset + slab * n for entry, n in zip(entries, taken.slabs, strict=True)], np.int64)
    own = joined(taken.part.shape(items), taken.axes)
    projection, _, tensor = taken.name.partition(".")
    run = taken.part.run(items)
    if run is not None:
        return ExpertTensor(projection, tensor, dtype, own, file, offset + run * taken.item_bytes)
    return ExpertTensor(projection, tensor, dtype, own, file, offset, part=taken.part, stored=items)
