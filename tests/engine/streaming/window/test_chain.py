"""Chain: layers are found in order, their calls intercepted, and their caches restored."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.cache as c
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache
from mlx_lm.models.deepseek_v41 import LayerCache

from engine import KnobError
from engine.streaming.window.chain import Call, chain_of, check_plain, intercept, snapshots


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


class Whole(nn.Module):
    """A model that calls its layers one after the other; `spoil` changes what is passed on."""

    def __init__(self, spoil: Callable[[mx.array], Any]) -> None:
        super().__init__()
        self.layers = [Layer(i) for i in range(3)]
        self.spoil = spoil

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        x = tokens.astype(mx.float32)
        for layer, own in zip(self.layers, cache, strict=True):
            x = self.spoil(layer(x, own))
        return x

    def make_cache(self) -> list[ArraysCache]:
        return [ArraysCache(1) for _ in self.layers]


PATHS = [f"layers.{n}.mlp.switch" for n in range(3)]


def test_a_plain_chain_is_left_as_it_was() -> None:
    model = Whole(lambda x: x)
    check_plain(model, PATHS)
    assert all(type(layer) is Layer for layer in model.layers)


@pytest.mark.parametrize("spoil", [lambda x: x + 0, lambda x: mx.stack([x, x])[0]])
def test_layers_that_are_no_plain_chain_are_refused_before_anything_is_computed(spoil: Callable[[mx.array], Any]) -> None:
    model = Whole(spoil)
    with pytest.raises(KnobError, match="sync_window is not possible for this model: Layer is not in a plain chain"):
        check_plain(model, PATHS)
    assert all(type(layer) is Layer for layer in model.layers)


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


def arrays(step: int, heads: int = 2, dims: int = 64, batch: int = 1, length: int = 1) -> tuple[mx.array, mx.array]:
    """Keys and values that differ from step to step."""
    key = mx.random.key(step)
    return tuple(mx.random.normal((batch, heads, length, dims), key=k) for k in mx.random.split(key))  # type: ignore[return-value]


def fetch(cache: Any, step: int, length: int = 1) -> list[mx.array]:
    """One call of an attention layer: its mask, keys and values."""
    mask = cache.make_mask(length, window_size=None, return_array=True) if hasattr(cache, "make_mask") else None
    batch = len(getattr(cache, "left_padding", [0]))
    found = cache.update_and_fetch(*arrays(step, length=length, batch=batch))
    return [a for _, a in tree_flatten([mask, found]) if isinstance(a, mx.array)]


def recur(cache: Any, step: int, length: int = 1) -> list[mx.array]:
    """One call of a recurrent layer: its mask, its states, and the counters of padding that it advances."""
    mask = cache.make_mask(length)
    for i in range(len(cache.cache)):
        new = arrays(step + i)[0][:, :, 0]
        cache[i] = new if cache[i] is None else cache[i] * 0.5 + new
    cache.advance(length)
    return [a for a in (mask, *cache.cache, cache.left_padding, cache.lengths) if a is not None]


def both(cache: Any, step: int, length: int = 1) -> list[mx.array]:
    return [*fetch(cache[0], step, length), *recur(cache[1], step, length)]


def compressed(cache: Any, step: int, length: int = 1) -> list[mx.array]:
    window = cache.update_window(arrays(step, length=length)[0][:, 0])
    cache.pending_kv = window * 2 if cache.pending_kv is None else cache.pending_kv + window[:, -1:]
    return [window, cache.pending_kv]


def padded(cache: Any, lengths: list[int]) -> Any:
    cache.prepare(lengths=lengths, right_padding=[max(lengths) - n for n in lengths])
    return cache


CACHES: dict[type, list[tuple[Callable[[], Any], Callable[..., list[mx.array]]]]] = {
    c.KVCache: [(c.KVCache, fetch)],
    c.ConcatenateKVCache: [(c.ConcatenateKVCache, fetch)],
    c.QuantizedKVCache: [(c.QuantizedKVCache, fetch)],
    c.RotatingKVCache: [(lambda: c.RotatingKVCache(8, keep=2), fetch), (lambda: c.RotatingKVCache(8), fetch)],
    c.ChunkedKVCache: [(lambda: c.ChunkedKVCache(8), fetch)],
    c.BatchKVCache: [(lambda: c.BatchKVCache([2]), fetch), (lambda: c.BatchKVCache([0, 3]), fetch)],
    c.BatchRotatingKVCache: [
        (lambda: c.BatchRotatingKVCache(8, [2]), fetch), (lambda: c.BatchRotatingKVCache(8, [0, 3]), fetch)
    ],
    c.ArraysCache: [
        (lambda: c.ArraysCache(2), recur), (lambda: c.ArraysCache(2, [3]), recur),
        (lambda: padded(c.ArraysCache(1, [1]), [5]), recur),
    ],
    c.CacheList: [(lambda: c.CacheList(c.BatchRotatingKVCache(8, [2]), c.ArraysCache(2, [3])), both)],
    LayerCache: [(lambda: LayerCache(4), compressed)],
}  # fmt: skip


def test_every_cache_class_is_tested() -> None:
    defined = {cls for cls in vars(c).values() if isinstance(cls, type) and issubclass(cls, c._BaseCache)} - {c._BaseCache}
    assert defined <= set(CACHES)
    models = Path(c.__file__).parent
    others = {f"{p.stem}.{n}" for p in models.glob("*.py") for n in re.findall(r"^class (\w*Cache\w*)", p.read_text(), re.M)}
    assert {name for name in others if not name.startswith("cache.")} == {"deepseek_v41.LayerCache"}


@pytest.mark.parametrize("before", [0, 3, 7, 8, 13])
@pytest.mark.parametrize(
    ("make", "step"), [pytest.param(*case, id=cls.__name__) for cls, cases in CACHES.items() for case in cases]
)
def test_a_restored_cache_gives_what_an_untouched_one_gives(
    make: Callable[[], Any], step: Callable[..., list[mx.array]], before: int
) -> None:
    """After a prefill and some tokens, a rejected call with other content is repeated twice; then other tokens follow."""
    cache = make()
    if before > 3 and not isinstance(cache, c.ArraysCache):
        step(cache, 100, length=before - 3)
    for number in range(min(before, 3)):
        step(cache, number)
    untouched = [copy.deepcopy(cache) for _ in range(2)]
    call = Call(None, mx.array(0), ([cache],), {}, snapshots([[cache]]))
    mx.eval([step(cache, 200), cache.state])
    for number, other in enumerate(untouched):
        call.restore()
        for token in range(300, 304 if number else 301):
            found, right = step(cache, token + number), step(other, token + number)
            assert len(found) == len(right) > 0
            assert all(mx.array_equal(a, b) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("make", [c.KVCache, lambda: c.RotatingKVCache(64), lambda: c.BatchKVCache([0])])
def test_keys_and_values_have_one_reference(make: Callable[[], Any]) -> None:
    """MLX writes in place only then; with a second reference it would copy a long text's keys for every token."""
    cache = make()
    fetch(cache, 0)
    keys = cache.keys
    _, state = snapshots([cache])[0]
    assert state["keys"] is keys and state["values"] is cache.values
