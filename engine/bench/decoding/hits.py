"""bench hits: the overhead of a streamed layer when every expert that a token uses is cached.

The benchmark measures a layer from the router's choice, already known, to the call of mlx-lm's own switch, but not that
switch's computation; and the layer's share of the bookkeeping at the end of the token. A resident layer has neither cost.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from engine.engine import load
from engine.errors import KnobError
from engine.knobs import Knobs
from engine.plan.footprint import footprint

from ..contender import spread

TOKENS = 200


def bench_hits(model: Path, knobs: Knobs, *, rounds: int) -> dict[str, Any]:
    """Microseconds per layer and token: median and quartiles of `rounds` rounds of 200 tokens."""
    sizes = footprint(model, knobs)
    cache_gb = (sizes.one_token_gb + sizes.all_experts_gb) / 2
    with load(model, Knobs.from_mapping({**knobs.as_dict(), "cache_gb": cache_gb})) as engine:
        state = engine.state
        layers = [layer for layer in engine.layers if not layer.complete]
        if state is None or not layers:
            raise KnobError(
                f"bench hits: every layer of {model} fits completely with half of the experts cached; give a larger model"
            )
        top_k, x = engine.checkpoint.top_k, mx.zeros((1, 1, 1))
        chosen = [mx.array(np.arange(top_k, dtype=np.uint32)[None, None])] * len(layers)
        mx.eval(x, *chosen)
        for layer in layers:
            for pool in layer.cache.pools:
                pool.inner = _nothing
            layer.cache.on_host(x, np.arange(top_k, dtype=np.int32)[None, None])  # loads them once
        figures = []
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(TOKENS):
                for layer, indices in zip(layers, chosen, strict=True):
                    layer(x, indices)
                state.position += 1
            figures.append((time.perf_counter() - begin) / TOKENS / len(layers) * 1e6)
        misses = engine.stats.misses
    low, middle, high = spread(figures)
    print(f"{len(layers)} layers, top-{top_k}, all hits: {middle:.1f} us per layer and token ({low:.1f} .. {high:.1f})")
    return {"bench": "hits", "layers": len(layers), "top_k": top_k, "misses": misses, "us_per_layer": [low, middle, high]}


def _nothing(x: mx.array, slots: mx.array) -> mx.array:
    return x
