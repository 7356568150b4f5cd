"""Miss: what a layer costs because it may miss an expert, and because it misses one, besides the bytes that are read.

The engine decodes a short model in the real shape with forced routing, whose weights are the zeros of a sparse file, which
takes no space on the disk. Reads are held to HELD_GBPS, far below the speed of memory, so that copying the bytes is hidden
as it is on a disk. A token that finds its experts cached, less the same token with everything resident, gives the wait for
the routers' choices. A token that misses one expert in each layer, less one that misses none and the time of the bytes,
gives the cost of a miss.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.dtypes import ITEM_BYTES
from engine.errors import HeadraceError
from engine.knobs import GB, Knobs
from engine.shapes.shape import Shape
from engine.system.strict_json import to_json

from .short import least_depth, probing, rounds, shortened

HELD_GBPS = 0.5
DEEP = 4  # layers with routed experts
MOST_BYTES = 2 << 30  # of the weights of a short model; a deeper one is shortened
UNLIKE = 0.5  # of the cost of a miss: bandwidths and the number of experts that a layer misses change it by about so much
WARM_UP, ROUNDS, LONGEST_S = 2, 60, 2.5


@dataclass(frozen=True)
class MissTime:
    """Milliseconds of a layer that may miss an expert, and of one that does, besides its bytes. `missed_sd` is the standard
    deviation of the latter, ms: the error of its median over rounds, and UNLIKE of it."""

    sync_ms: float
    missed_ms: float
    missed_sd: float


def miss_time(shape: Shape, bits: int | None) -> MissTime:
    """Measure a shape as converted to `bits`. Raises `HeadraceError` if the engine cannot stream it here."""
    least = least_depth(shape)
    deep = min(least + DEEP - 1, int(shape.built.layers))
    with probing(f"a miss of {shape.name}"), tempfile.TemporaryDirectory(prefix="headrace-miss-") as made:
        folder = Path(made)
        while _written(shortened(shape, deep, _part(shape)), bits, folder) > MOST_BYTES and deep > least + 1:
            deep -= 1
        return _measured(folder)


def _part(shape: Shape) -> int:
    """The head is the same in every pass, and a small one does."""
    return max(1, shape.built.vocabulary // 1024)


def _written(shape: Shape, bits: int | None, folder: Path) -> int:
    """Write a checkpoint of zeros, as an MLX conversion has it; returns the bytes of its tensors."""
    made = shape.layout(bits)
    if made.symmetric:  # MLX computes with biases, which such a checkpoint does not store
        made = shape.layout(shape.experts_format.bits)
    header, at = {}, 0
    for name, (dtype, size) in sorted(made.tensors.items()):
        end = at + math.prod(size) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": size, "data_offsets": [at, end]}
        at = end
    encoded = to_json({"__metadata__": {"format": "mlx"}, **header}).encode()
    encoded = encoded.ljust(-(-len(encoded) // 8) * 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + at)
    (folder / "config.json").write_text(to_json(made.config), encoding="utf-8")
    return at


def _measured(folder: Path) -> MissTime:
    from engine import load
    from engine.cache.slot_layout import slot_bytes
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.model.backend import compute_dtype

    source = Checkpoint.open(folder)
    layers, top_k = len(source.layers), source.top_k
    slots = sum(top_k * slot_bytes(layer, {}, compute_dtype()) for layer in source.layers)
    expert_ms = sum(layer.expert_bytes for layer in source.layers) / layers / GB / HELD_GBPS * 1000
    knobs = Knobs(cache_gb=slots * (1 + 1e-9) / GB, ssd_gbps=HELD_GBPS)
    with load(folder, knobs) as streamed, load(folder, Knobs()) as resident:
        ids = _moving(min(layer.experts for layer in source.layers), layers, top_k)
        engines = _Decoding(resident, ids), _Decoding(streamed, ids)
        for _ in range(WARM_UP):
            for engine in engines:
                engine.token()
        streamed.stats.reset()
        tokens = 0

        def tried() -> tuple[float, float, float]:
            nonlocal tokens
            (_, whole), (missing, cached) = ((engine.token(), engine.token()) for engine in engines)
            tokens += 1
            return whole, cached, missing

        measured = rounds(tried, ROUNDS, LONGEST_S)
        if streamed.stats.layers_missed != layers * tokens or streamed.stats.misses != layers * tokens:
            raise HeadraceError(
                f"the probe of misses had {streamed.stats.misses} in {tokens} tokens of {layers} layers, not one in "
                "each layer; name a profile: device=NAME"
            )
    sync = statistics.median(cached - whole for whole, cached, _ in measured) / layers
    each = [(missing - cached) / layers - expert_ms for _, cached, missing in measured]
    missed = statistics.median(each)
    error = 1.4826 * statistics.median(abs(value - missed) for value in each) / math.sqrt(len(each))
    return MissTime(max(0.0, sync), max(0.0, missed), math.hypot(error, UNLIKE * missed))


def _moving(experts: int, layers: int, top_k: int) -> np.ndarray:
    """Forced choices, uint32 [tokens, layers, top-k]: each second token has one expert that the token before it did not use,
    and the other tokens have those of the token before."""
    first = np.arange(2 * experts)[:, None] // 2
    return np.repeat(((first + np.arange(top_k)) % experts)[:, None].astype(np.uint32), layers, axis=1)


class _Decoding:
    """An engine with forced choices that decodes token after token."""

    def __init__(self, engine: Any, ids: np.ndarray) -> None:
        from mlx_lm.models.cache import make_prompt_cache

        from engine.routing.forced import force

        force(engine, ids, None)
        self._engine, self._cache = engine, make_prompt_cache(engine.model)

    def token(self) -> float:
        """Milliseconds of the next token."""
        begin = time.perf_counter()
        self._engine.forward.logits([0], self._cache)
        return (time.perf_counter() - begin) * 1000
