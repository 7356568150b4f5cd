"""What a router does to a cache: the LRU hit rate and the expert loads of a routing, and a way to record one.

A routing is an int array [tokens, layers, top_k] of expert ids in decode order.
"""

from collections import OrderedDict

import mlx.core as mx
import mlx.nn as nn
import numpy as np


def lru_hit_rate(routing: np.ndarray, slots: int) -> float:
    """Share of expert requests found in a per-layer LRU cache of `slots` experts; a token's own experts never evict
    one another before all of them were looked up."""
    hits = 0
    for layer in range(routing.shape[1]):
        cache: OrderedDict[int, None] = OrderedDict()
        for experts in routing[:, layer].tolist():
            hits += sum(expert in cache for expert in experts)
            for expert in experts:
                cache[expert] = None
                cache.move_to_end(expert)
            while len(cache) > slots:
                cache.popitem(last=False)
    return hits / routing.size


def expert_loads(routing: np.ndarray, experts: int) -> np.ndarray:
    """[layers, experts]: the share of a layer's routed (token, expert) pairs that each expert gets; a row sums to 1."""
    tokens, layers, top_k = routing.shape
    counts = [np.bincount(routing[:, layer].ravel(), minlength=experts) for layer in range(layers)]
    return np.stack(counts) / (tokens * top_k)


class Recorder(nn.Module):
    """Stands where an MoE gate stood and keeps what it chose, gate weights included."""

    def __init__(self, gate: nn.Module):
        super().__init__()
        self.gate = gate
        self._chosen: list[tuple[mx.array, mx.array]] = []

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        experts, weights = self.gate(x)
        self._chosen.append((experts.reshape(-1, experts.shape[-1]), weights.reshape(-1, weights.shape[-1])))
        return experts, weights

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        experts, weights = (mx.concatenate(list(part)) for part in zip(*self._chosen, strict=True))
        self._chosen.clear()
        return np.array(experts.astype(mx.int32)), np.array(weights.astype(mx.float32))


def record(model: nn.Module) -> list[Recorder]:
    """Put a recorder into each MoE layer of an mlx-lm deepseek_v3 model."""
    recorders = []
    for layer in model.layers:
        if "gate" in layer.mlp:
            layer.mlp.gate = Recorder(layer.mlp.gate)
            recorders.append(layer.mlp.gate)
    return recorders
