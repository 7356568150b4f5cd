"""Dry passes: they count and place, and read nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine import Knobs, footprint, load
from engine.cache_state.dry import dry_passes


def test_layers_that_were_not_computed_request_nothing(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("deepseek_v3", None, True)
    experts = np.random.default_rng(3).permuted(np.tile(np.arange(16), (9, 3, 1)), axis=2)[..., :4]
    experts[:, 2], experts[5:, 0] = -1, -1
    with load(path, Knobs(cache_gb=2 * footprint(path).one_token_gb)) as engine:
        assert engine.state is not None
        for layer in engine.layers:
            layer.cache.pools[0].dry = True
        dry_passes(engine.layers, engine.state, experts, 4)
        assert engine.uses.sum(axis=1).tolist() == [20, 36, 0] and engine.state.position == 9
        assert (engine.state.slot_of >= 0).sum(axis=1).tolist() == [8, 8, 0]
        assert engine.stats.reads == engine.stats.bytes_read == 0
