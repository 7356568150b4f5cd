"""The three modules of mlx-lm's deepseek_v3 that training replaces, parameters unchanged.

mlx-lm's own are made for serving: SwitchGLU's backward scatters, the fused attention has no gradient for MLA's position
scores, and the embedding's gradient would be summed in the activations' bfloat16. Tested equal to the originals.
"""

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import deepseek_v3
from mlx_lm.models.switch_layers import SwitchGLU


@mx.custom_function
def dispatch(x: Any, slot: Any, pair: Any, filled: Any) -> Any:
    """x [T, D] -> expert batches [E * C, D]: row s holds the token of routed pair `pair[s]`, or zero."""
    return mx.where(filled[:, None], x[pair // slot.shape[1]], 0)


@dispatch.vjp
def _dispatch_vjp(primals: Any, cotangent: Any, _: Any) -> Any:
    x, slot, pair, filled = primals
    kept = slot < pair.size
    rows = mx.where(kept[..., None], cotangent[mx.minimum(slot, pair.size - 1)], 0)
    return (
        rows.astype(mx.float32).sum(axis=1).astype(x.dtype),
        mx.zeros_like(slot),
        mx.zeros_like(pair),
        mx.zeros_like(filled),
    )


@mx.custom_function
def collect(rows: Any, slot: Any, pair: Any, filled: Any) -> Any:
    """Expert batches [E * C, D] -> [T, k, D]; a dropped pair gives zero."""
    kept = slot < pair.size
    return mx.where(kept[..., None], rows[mx.minimum(slot, pair.size - 1)], 0)


@collect.vjp
def _collect_vjp(primals: Any, cotangent: Any, _: Any) -> Any:
    rows, slot, pair, filled = primals
    back = mx.where(filled[:, None], cotangent.reshape(-1, rows.shape[-1])[pair], 0)
    return back, mx.zeros_like(slot), mx.zeros_like(pair), mx.zeros_like(filled)


class PermutedSwitchGLU(nn.Module):
    """mlx-lm's SwitchGLU, its weights taken over, as three batched matrix products over [experts, capacity, D]."""

    def __init__(self, switch: SwitchGLU, capacity_factor: float):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = switch.gate_proj, switch.up_proj, switch.down_proj
        self._capacity_factor = capacity_factor

    def __call__(self, x: mx.array, indices: mx.array) -> mx.array:
        experts, (*lead, k) = self.gate_proj.num_experts, indices.shape
        x, expert_of = x.reshape(-1, x.shape[-1]), indices.astype(mx.int32).reshape(-1)
        capacity = min(math.ceil(expert_of.size / experts * self._capacity_factor), expert_of.size // k)
        counts = (expert_of[:, None] == mx.arange(experts)).astype(mx.int32).sum(axis=0)
        first = mx.cumsum(counts) - counts
        order = mx.argsort(expert_of).astype(mx.int32)
        position = mx.argsort(order).astype(mx.int32) - first[expert_of]
        # slot: where each routed pair goes in the expert batches (one past the end: dropped); pair: the way back
        slot = mx.where(position < capacity, expert_of * capacity + position, experts * capacity).reshape(-1, k)
        column = mx.arange(capacity)
        filled = (column < counts[:, None]).reshape(-1)
        pair = order[mx.minimum(first[:, None] + column, expert_of.size - 1)].reshape(-1)
        rows: Any = dispatch(x, slot, pair, filled)
        rows = rows.reshape(experts, capacity, -1)
        gate, up, down = (p.weight.swapaxes(-1, -2) for p in (self.gate_proj, self.up_proj, self.down_proj))
        rows = (nn.silu(rows @ gate) * (rows @ up)) @ down
        self._counts, self._chosen = counts, indices
        out: Any = collect(rows.reshape(experts * capacity, -1), slot, pair, filled)
        return out.reshape(*lead, k, -1)


class ScoredGate(nn.Module):
    """mlx-lm's MoEGate in float32, remembering its scores for the locality loss."""

    def __init__(self, gate: deepseek_v3.MoEGate):
        super().__init__()
        self.weight, self.e_score_correction_bias = gate.weight, gate.e_score_correction_bias
        self._select = (gate.top_k, gate.n_group, gate.topk_group, gate.routed_scaling_factor, gate.norm_topk_prob)

    def __call__(self, x: mx.array) -> tuple[mx.array, mx.array]:
        logits = x.astype(mx.float32) @ self.weight.astype(mx.float32).T
        self._scores = mx.sigmoid(logits)
        return deepseek_v3.group_expert_select(logits, self.e_score_correction_bias, *self._select)


class WideEmbedding(nn.Module):
    """The gradient of a frequent token sums thousands of rows: gather in float32, round after."""

    def __init__(self, embedding: nn.Embedding, dtype: mx.Dtype):
        super().__init__()
        self.weight, self._dtype = embedding.weight, dtype

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.weight[tokens].astype(self._dtype)


def plain_attention(q: mx.array, k: mx.array, v: mx.array, cache: Any, scale: float, mask: mx.array) -> mx.array:
    """mlx-lm's attention, unfused: the additive mask carries MLA's position scores and needs a gradient."""
    scores = (q * scale) @ k.swapaxes(-1, -2) + mask
    return mx.softmax(scores, axis=-1, precise=True) @ v


def training_model(config: dict[str, Any], capacity_factor: float, dtype: mx.Dtype) -> nn.Module:
    model = deepseek_v3.Model(deepseek_v3.ModelArgs.from_dict(config))
    model.model.embed_tokens = WideEmbedding(model.model.embed_tokens, dtype)  # type: ignore[assignment]
    for layer in moe_layers(model):
        layer.switch_mlp = PermutedSwitchGLU(layer.switch_mlp, capacity_factor)
        layer.gate = ScoredGate(layer.gate)
    return model


def moe_layers(model: nn.Module) -> list[nn.Module]:
    return [layer.mlp for layer in model.layers if "switch_mlp" in layer.mlp]
