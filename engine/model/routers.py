"""Routers: a block's router, run on the input of another layer, to predict a choice before its layer is reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from engine.checkpoint.experts import ExpertLayer

from .probe import probe, widened

Router = Callable[[mx.array], mx.array]  # a block's input [1, 1, dims] -> expert ids


def router_of(block: Any, switch: str, top_k: int, wide: int, layer: ExpertLayer) -> Router | None:
    """Return a function from a block's input [1, 1, dims] to the `wide` expert ids that its router ranks first.

    None if the block's router cannot be run by itself. `layer` are the block's experts.
    """
    dims = layer.input_dims("gate_proj" if "gate_proj" in layer.projections else "fc1")
    copied = block if wide == top_k else widened(block, switch, top_k, wide, dims)
    if copied is None:
        return None
    run = probe(copied, switch, weigh=False)
    try:
        ids = run(mx.zeros((1, 1, dims))).ids
    except Exception:  # an unknown block may raise anything
        return None
    return (lambda x: run(x).ids) if ids.size == wide else None
