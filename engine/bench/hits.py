"""bench hits: what the books of a streamed layer cost when every expert that a token asks for is there.

Measured is a layer's way from the router's choice, known already, to the call of mlx-lm's own switch, whose computing is
left out; and its part of the accounts at the end of the token. A resident layer pays none of this.
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

from . import spread

TOKENS = 200


def bench_hits(model: Path, knobs: Knobs, *, rounds: int) -> dict[str, Any]:
    """Microseconds a layer and token, the median and quartiles of `rounds` rounds of 200 tokens."""
    sizes = footprint(model, knobs)
    cache_gb = (sizes.one_token_gb + sizes.all_experts_gb) / 2
    with load(model, Knobs.from_mapping({**knobs.as_dict(), "cache_gb": cache_gb})) as engine:
        run = engine.state
        streams = [stream for stream in engine.layers if not stream.complete]
        if run is None or not streams:
            raise KnobError(f"bench hits: every layer of {model} fits with half of its experts cached; give a larger model")
        top_k, x = engine.checkpoint.top_k, mx.zeros((1, 1, 1))
        chosen = [mx.array(np.arange(top_k, dtype=np.uint32)[None, None])] * len(streams)
        mx.eval(x, *chosen)
        for stream in streams:
            for bank in stream.cache.pools:
                bank.inner = _nothing
            stream.cache.on_host(x, np.arange(top_k, dtype=np.int32)[None, None])  # reads them once
        figures = []
        for _ in range(rounds):
            begin = time.perf_counter()
            for _ in range(TOKENS):
                for stream, indices in zip(streams, chosen, strict=True):
                    stream(x, indices)
                run.end_pass(1)
            figures.append((time.perf_counter() - begin) / TOKENS / len(streams) * 1e6)
        misses = engine.stats.misses
    low, middle, high = spread(figures)
    print(f"{len(streams)} layers, top-{top_k}, all hits: {middle:.1f} us a layer and token ({low:.1f} .. {high:.1f})")
    return {"bench": "hits", "layers": len(streams), "top_k": top_k, "misses": misses, "us_per_layer": [low, middle, high]}


def _nothing(x: mx.array, slots: mx.array) -> mx.array:
    return x
