"""Forced routing: decodes with the experts of a recorded trace, for models of random weights.

The routing of a model with random weights collapses. Forced experts do not depend on the hidden state, and a
rejected pass of `sync_window` would predict all of them. The recall of its predictions is therefore limited to shares
measured on a trained model.
"""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from engine.engine import Engine
from engine.errors import HeadraceError
from engine.model.switches import switches
from engine.routing.read import Trace
from engine.stats import Stats

WARM_UP = 16  # least number of tokens before the clock starts


class ForcedRouting:
    """An engine whose routing comes from a trace. If the trace has fewer ranks than the model, the missing ones are the last
    ranks of the layer half the model away, for the same token.

    `recall`: share of the experts that a rejected pass predicts, for the first pass of a window and for later ones; None:
    all of them. Raises `HeadraceError` for a trace that does not fit the model.
    """

    def __init__(self, engine: Engine, trace: Trace, recall: list[float] | None) -> None:
        layers, top_k = len(engine.checkpoint.layers), engine.checkpoint.top_k
        experts = min(layer.experts for layer in engine.checkpoint.layers)
        recorded = trace.experts[trace.prefilled :] if (trace.experts < 0).any() else trace.experts
        if recorded.shape[1] < layers or recorded.max() >= experts or recorded.shape[2] < top_k / 2:
            raise HeadraceError(
                f"trace {trace.path} ({trace.shape}) does not fit {engine.checkpoint.name} ({layers} layers of "
                f"{experts} experts, top-{top_k}); give one with as many layers, no more experts and at least half of top-k"
            )
        self._engine = engine
        self.ids = _completed(recorded[:, :layers], top_k)
        self._token = 0
        self._on_device: list[mx.array] = []
        self._recall = recall
        if engine.windows is not None and recall is not None:
            engine.windows.prediction = self._predicted  # type: ignore[method-assign]
        paths = [path for path, _ in switches(engine.model, engine.checkpoint)]
        modules = dict(engine.model.named_modules())
        forced = [(path, _ForcedSwitch(modules[path], number, self)) for number, path in enumerate(paths)]
        engine.model.update_modules(tree_unflatten(forced))

    def choice(self, layer: int) -> mx.array:
        return self._on_device[layer]

    def decode(self, tokens: int) -> tuple[float, Stats]:
        """Warm up, then decode `tokens` tokens of the trace once. Returns the seconds and the counters of that time."""
        engine, most = self._engine, len(self.ids) - WARM_UP
        cache = make_prompt_cache(engine.model)
        random = np.random.default_rng(0).integers(0, engine.checkpoint.built.vocabulary, len(self.ids))
        begin = 0.0
        for self._token in range(WARM_UP + min(tokens, most)):
            if self._token == WARM_UP:
                engine.stats.reset()
                begin = time.perf_counter()
            self._on_device = [mx.array(ids) for ids in self.ids[self._token]]
            engine.forward.logits([int(random[self._token])], cache)
        return time.perf_counter() - begin, engine.stats.copy()

    def _predicted(self, number: int, ids: np.ndarray, rejected: int) -> np.ndarray:
        """The prediction of a rejected pass: each expert stays with the probability `recall`; the others are replaced by
        choices of the layer for another, random token, because wrong predictions of a real model are often-used experts. A
        later pass with a higher recall keeps what an earlier one predicted."""
        assert self._recall is not None
        rng = np.random.default_rng((self._token, number))
        wrong = rng.random(ids.shape) >= self._recall[min(rejected, len(self._recall)) - 1]
        shown = np.array(ids)
        for other in rng.permutation(len(self.ids)):
            for rank in np.flatnonzero(wrong):
                stand_in = self.ids[other, number, rank]
                if stand_in not in ids and stand_in not in shown:
                    shown[rank], wrong[rank] = stand_in, False
            if not wrong.any():
                break
        return shown


class _ForcedSwitch(nn.Module):
    """A switch that gets the trace's experts, no earlier than the router's own choice."""

    def __init__(self, inner: Any, layer: int, forced: ForcedRouting) -> None:
        super().__init__()
        object.__setattr__(self, "_inner", inner)
        object.__setattr__(self, "_layer", layer)
        object.__setattr__(self, "_forced", forced)

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        return self._inner(x, _instead(indices, self._forced.choice(self._layer)))


@mx.compile
def _instead(indices: mx.array, forced: mx.array) -> mx.array:
    """`forced`, computed after `indices`."""
    return mx.where(indices < 1 << 30, mx.broadcast_to(forced, indices.shape), indices).astype(indices.dtype)


def _completed(recorded: np.ndarray, top_k: int) -> np.ndarray:
    """uint32 [tokens, layers, top-k]: the trace's first ranks, followed by another layer's last ones if it has too few."""
    tokens, layers, ranks = recorded.shape
    if ranks >= top_k:
        return recorded[..., :top_k].astype(np.uint32)
    out = np.concatenate([recorded, np.full((tokens, layers, top_k - ranks), -1)], axis=-1)
    others = np.roll(recorded, layers // 2, axis=1)[..., ::-1]
    for token in range(tokens):
        for layer in range(layers):
            new = [e for e in others[token, layer].tolist() if e not in recorded[token, layer]]
            spare = [e for e in range(top_k * 2) if e not in recorded[token, layer] and e not in new]
            out[token, layer, ranks:] = (new + spare)[: top_k - ranks]
    return out.astype(np.uint32)
