"""Routers: a block's router chooses as many experts as asked for, the first of which are its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from engine import load
from engine.model.routers import router_of
from engine.model.switches import switches


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
def test_a_router_is_run_by_itself(checkpoint: Callable[..., Path], family: str) -> None:
    with load(checkpoint(family)) as engine:
        source = engine.checkpoint
        path = switches(engine.model, source)[0][0]
        owner, _, name = path.rpartition(".")
        block = dict(engine.model.named_modules())[owner]
        x = mx.random.normal((1, 1, source.built.hidden), key=mx.random.key(1))
        layer, top_k = source.layers[0], source.top_k
        found: list[Any] = [router_of(block, name, top_k, wide, layer) for wide in (top_k, top_k + 1, layer.experts)]
        ids = [set(np.array(router(x)).ravel().tolist()) for router in found]
        assert [len(one) for one in ids] == [top_k, top_k + 1, layer.experts] and ids[0] < ids[1] < ids[2]
        assert router_of(block, name, top_k, layer.experts + 1, layer) is None
