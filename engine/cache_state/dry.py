"""Dry passes: recorded choices go through the engine's own slots, eviction and batches, without a read or a computation.

The pools, `LayerPools` and `request_choice` are those of a pass that computes, so slots, uses and warmth come out the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine.plan.chunk import parts_of
from engine.streaming.decode_state import DecodeState
from engine.streaming.layer import StreamedLayer
from engine.streaming.prefetch import request_choice


def dry_passes(layers: Sequence[StreamedLayer], state: DecodeState, experts: np.ndarray, chunk: int) -> None:
    """Request the choices `experts`, int [tokens, layers, top-k], in passes of `chunk` tokens. -1: a layer not computed.

    The pools must be `dry`. A pass of one token predicts nothing, whatever `prefetch` is.
    """
    by_layer = np.ascontiguousarray(experts.transpose(1, 0, 2), np.int32)
    partial = [layer for layer in layers if not layer.complete]
    slots = np.zeros(experts.shape[2], np.int32)
    for part in parts_of(len(experts), chunk):
        for layer in partial:
            ids = by_layer[layer.number, part]
            ids = ids[ids[:, 0] >= 0]
            if len(ids):
                request_choice(state, layer.number, layer.cache, layer.prefetch, ids, slots, [])
        state.position += part.stop - part.start
