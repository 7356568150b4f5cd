"""Recorder: the choices of all layers, token by token, as a trace has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache

from engine import Knobs, footprint, load
from engine.model.switches import switches
from engine.prompt_cache.recorder import recorded
from engine.routing.read import read_trace

TOKENS = np.random.default_rng(3).integers(0, 255, 21).tolist()


@pytest.mark.parametrize("streamed", [False, True])
def test_the_routing_is_that_of_a_trace(checkpoint: Any, tmp_path: Path, streamed: bool) -> None:
    path = checkpoint("qwen3_moe")
    cache_gb = footprint(path).one_token_gb if streamed else None
    with load(path, Knobs(cache_gb=cache_gb, prefill_chunk=8)) as engine:
        places = [place for place, _ in switches(engine.model, engine.checkpoint)]
        with recorded(engine.model, places) as recorder:
            for logits in engine.forward.prefill(TOKENS, make_prompt_cache(engine.model)):
                recorder.take(len(logits))
        assert [place for place, _ in switches(engine.model, engine.checkpoint)] == places
        with engine.trace(tmp_path / "trace.parquet"):
            engine.logits(TOKENS)
            engine.forward.decode(1, make_prompt_cache(engine.model))
    found = read_trace(tmp_path / "trace.parquet").experts
    routing = recorder.routing
    assert routing is not None and routing.dtype == np.int16
    assert np.array_equal(np.sort(routing, axis=-1), np.sort(found[: len(TOKENS)], axis=-1))


class Switch(nn.Module):
    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        return x


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.switches = [Switch(), Switch()]
        self.one, self.two = Switch(), Switch()


def test_fewer_experts_in_a_layer_are_filled_up() -> None:
    model = Block()
    with recorded(model, ["one", "two"]) as recorder:
        model.one(mx.zeros(1), mx.array([[[1, 2], [3, 4]]]))
        model.two(mx.zeros(1), mx.array([[[9], [9]]]))
        model.two(mx.zeros(1), mx.array([[[5], [6]]]))  # computed again: the last time counts
        recorder.take(2)
    assert recorder.routing is not None and recorder.routing.tolist() == [[[1, 2], [5, -1]], [[3, 4], [6, -1]]]
    assert type(model.one) is Switch


def test_a_layer_that_chooses_for_fewer_tokens_has_no_routing() -> None:
    model = Block()
    with recorded(model, ["one", "two"]) as recorder:
        model.one(mx.zeros(1), mx.array([[[1, 2], [3, 4]]]))
        recorder.take(2)
    assert recorder.routing is None
