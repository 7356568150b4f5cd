"""Chain: layers are found in order, their calls intercepted, and their caches restored."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache

from engine import KnobError
from engine.streaming.window.chain import Call, chain_of, intercept, snapshots


class Layer(nn.Module):
    """Adds `step` to its input and counts its calls in a cache."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.mlp = nn.Module()
        self.mlp.switch = nn.Module()

    def __call__(self, x: mx.array, cache: Any = None) -> mx.array:
        if cache is not None:
            cache[0] = x if cache[0] is None else cache[0] + x
        return x + self.step


def a_model(count: int = 12) -> nn.Module:
    model = nn.Module()
    model.model = nn.Module()
    model.model.layers = [Layer(i) for i in range(count)]
    return model


def test_layers_are_in_order_and_found_by_their_switches() -> None:
    model = a_model()
    paths = ["model.layers.10.mlp.switch", "model.layers.2.mlp.switch"]
    chain, layer_of = chain_of(model, paths)
    assert [layer.step for layer in chain] == list(range(12))
    assert [layer_of[path].step for path in paths] == [10, 2]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["model.mlp.switch"], "model.mlp.switch is in no list of layers"),
        (["model.layers.1.mlp.switch", "other.layers.0.mlp.switch"], "its layers are in 2 lists"),
    ],
)
def test_other_models_are_refused(paths: list[str], message: str) -> None:
    model = a_model()
    model.other = a_model().model
    with pytest.raises(KnobError, match=f"sync_window is not possible for this model: {message}"):
        chain_of(model, paths)


def test_an_intercepted_call_can_run_and_repeat() -> None:
    layer, cache, calls = Layer(5), ArraysCache(1), []

    def call(layer: Any, x: mx.array, args: tuple[Any, ...], kwargs: dict[str, Any]) -> mx.array:
        calls.append(Call(layer, x, args, kwargs, snapshots([*args, *kwargs.values()])))
        return calls[-1].run()

    intercept(layer, call)
    assert type(layer).__name__ == "Layer" and isinstance(layer, Layer)
    assert layer(mx.array(1), cache=cache).item() == 6 and cache[0].item() == 1
    assert layer(mx.array(2), cache=cache).item() == 7 and cache[0].item() == 3
    calls[1].restore()
    assert cache[0].item() == 1
    assert calls[1].run().item() == 7 and cache[0].item() == 3


def test_caches_are_found_in_lists_and_restored_whole() -> None:
    inner = KVCache()
    outer = CacheList(inner, ArraysCache(2))
    keys = mx.ones((1, 1, 3, 4))
    inner.update_and_fetch(keys, keys)
    call = Call(None, mx.array(0), (outer,), {}, snapshots([outer, mx.array(1), None]))
    assert len(call.caches) == 3
    inner.update_and_fetch(keys, keys)
    assert inner.offset == 6
    call.restore()
    assert inner.offset == 3
