"""Speculative windows: accepted output is exact, rejected passes are repeated with restored caches and counted."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from engine_fakes import FakePool
from mlx_lm.models.cache import ArraysCache

from engine import KnobError
from engine.stats import Stats
from engine.streaming.decode_state import DecodeState
from engine.streaming.layer import StreamedLayer
from engine.streaming.layer_cache import LayerCache
from engine.streaming.window import speculate
from engine.streaming.window.speculate import ALL, SpeculativeWindows, repeats

LAYERS, EXPERTS = 4, 8


class Block(nn.Module):
    """Chooses two experts by its input and its cache, and adds their outputs to the input."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        self.mlp = nn.Module()
        self.mlp.switch = nn.Module()

    def __call__(self, x: mx.array, cache: Any) -> mx.array:
        cache[0] = x if cache[0] is None else cache[0] + x
        first = (cache[0].reshape(-1)[0].astype(mx.int32) + self.number) % EXPERTS
        chosen = mx.stack([first, (first + 3) % EXPERTS])[None, None].astype(mx.uint32)
        return x + self.mlp.switch(x, chosen)[..., 0].sum(axis=-1, keepdims=True)


def run(tokens: int, size: int | None, slots: int = 3) -> tuple[list[float], DecodeState, list[FakePool]]:
    """Decode `tokens` tokens, with windows of `size` layers or none; the last hidden states, state and pools."""
    reader: Any = None
    state = DecodeState(LAYERS, EXPERTS, half_life=8.0, reader=reader, stats=Stats())
    model = nn.Module()
    model.layers = [Block(n) for n in range(LAYERS)]
    pools = [FakePool(list(range(EXPERTS)), slots, state.slot_of[n], state.layers[n]) for n in range(LAYERS)]
    layers = {}
    for n, block in enumerate(model.layers):
        own: Any = [pools[n]]
        layers[f"layers.{n}.mlp.switch"] = StreamedLayer(n, LayerCache(own, state.slot_of[n]), state, last=False)
        object.__setattr__(block.mlp, "switch", layers[f"layers.{n}.mlp.switch"])
    if size is not None:
        prefixed = {f"model.{path}": layer for path, layer in layers.items()}
        wrapped = nn.Module()
        wrapped.model = model
        SpeculativeWindows(wrapped, prefixed, size, state)
    caches, out = [ArraysCache(1) for _ in range(LAYERS)], []
    for token in range(tokens):
        x = mx.full((1, 1, 1), float(token % 5))
        for block, cache in zip(model.layers, caches, strict=True):
            x = block(x, cache)
        mx.eval(x)
        state.position += 1
        out.append(x.item())
    return out, state, pools


@pytest.mark.parametrize("together", [1, 2, 12])
@pytest.mark.parametrize("size", [2, 3, ALL])
def test_windows_give_what_checking_every_layer_gives(size: int, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculate, "TOGETHER", together)
    expected, plain, _ = run(20, None)
    found, state, _ = run(20, size)
    assert found == expected
    assert np.array_equal(state.uses, plain.uses) and state.stats.hits + state.stats.misses == 20 * LAYERS * 2
    assert state.stats.passes > state.stats.windows > 0 and state.stats.rejected_layers > 0
    assert 0 < state.stats.window_predicted <= state.stats.window_predicted_of


def test_demand_reads_precede_predicted_ones() -> None:
    """The first missing layer's experts are requested, those of the layers behind it speculatively."""
    _, _, pools = run(1, ALL)
    assert [name for name, _ in pools[0].calls][:2] == ["withdraw", "request"]
    assert all([name for name, _ in pool.calls][:2] == ["withdraw", "speculate"] for pool in pools[1:])


def test_reads_start_before_the_window_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group's missing experts are requested once the group after it is submitted, before later layers are built."""
    events: list[Any] = []
    call, request = Block.__call__, FakePool.request

    def recorded_call(self: Block, x: mx.array, cache: Any) -> mx.array:
        events.append(self.number)
        return call(self, x, cache)

    def recorded_request(self: FakePool, experts: np.ndarray, **how: Any) -> None:
        events.append(self)
        request(self, experts, **how)

    monkeypatch.setattr(speculate, "TOGETHER", 1)
    monkeypatch.setattr(Block, "__call__", recorded_call)
    monkeypatch.setattr(FakePool, "request", recorded_request)
    _, _, pools = run(1, ALL)
    assert events[:7] == [0, 1, pools[0], 2, pools[1], 3, pools[2]]


def test_wrong_predictions_are_withdrawn_once_the_choice_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repeated pass, a layer that waits for reads withdraws those of experts that it has not chosen."""
    request, settle = FakePool.request, FakePool.settle

    def recorded_request(self: FakePool, experts: np.ndarray, **how: Any) -> None:
        request(self, experts, **how)
        self.settled = False

    def recorded_settle(self: FakePool, experts: np.ndarray) -> None:
        settle(self, experts)
        self.settled = True

    monkeypatch.setattr(FakePool, "request", recorded_request)
    monkeypatch.setattr(FakePool, "settle", recorded_settle)
    found, _, pools = run(1, ALL)
    assert found == run(1, None)[0]
    for pool in pools[1:]:
        chosen = next(ids for name, ids in pool.calls if name == "settle")
        names = [name for name, _ in pool.calls]
        assert names == ["withdraw", "speculate", "take in", "withdraw", "request", "settle"]
        assert sorted(pool.calls[3][1]) == sorted(chosen)


def test_a_model_that_does_otherwise_is_refused() -> None:
    reader: Any = None
    state = DecodeState(2, EXPERTS, half_life=8.0, reader=reader, stats=Stats())
    model = nn.Module()
    model.layers = [Block(0), Block(1)]
    layers: Any = {f"model.layers.{n}.mlp.switch": None for n in range(2)}
    wrapped = nn.Module()
    wrapped.model = model
    windows = SpeculativeWindows(wrapped, layers, ALL, state)
    with pytest.raises(KnobError, match="Block is not in a plain chain; use sync_window=1"):
        windows.call(model.layers[1], mx.zeros((1, 1, 1)), (), {})


def test_an_expert_chosen_twice_counts_as_one_miss() -> None:
    assert repeats(np.array([[0, 3, 0], [1, 2, 3], [4, 4, 4]])).tolist() == [
        [False, False, True], [False, False, False], [False, True, True]
    ]  # fmt: skip
