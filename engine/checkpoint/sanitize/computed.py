"""Computed experts: layers whose weights mlx-lm computes from the stored values, such as other FP8 and NVFP4 formats.

mlx-lm's model is opened lazily, and one layer at a time is computed, in bfloat16. That is enough to pack them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.built.model import aside
from engine.checkpoint.experts import ExpertLayer, ExpertTensor

Values = dict[str, np.ndarray]  # tensor (gate_proj.weight) -> uint8 [experts, bytes]


def computed_layers(path: Path, blocks: Collection[str]) -> list[ExpertLayer]:
    """The layers of experts in the modules `blocks`, with functions that compute them."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP
    from mlx_lm.utils import load_model

    with aside():
        model, _ = load_model(path, lazy=True)
    layers = []
    for name, switch in model.named_modules():
        block = name.rpartition(".")[0]
        if isinstance(switch, SwitchGLU | SwitchMLP) and block in blocks:
            own = {p: m for p, m in switch.children().items() if isinstance(m, SwitchLinear | QuantizedSwitchLinear)}
            shapes = {p: (m.output_dims, m.input_dims) for p, m in own.items()}
            tensors = [_tensor(p, "weight", shape, switch[p].num_experts) for p, shape in shapes.items()]
            tensors += [_tensor(p, "bias", s[:1], switch[p].num_experts) for p, s in shapes.items() if "bias" in switch[p]]
            compute: Callable[[], Values] = functools.partial(_values, switch, tuple(shapes))
            layers.append(ExpertLayer(block, tuple(tensors), compute=compute))
    return layers


def _tensor(projection: str, tensor: str, shape: tuple[int, ...], experts: int) -> ExpertTensor:
    nowhere = np.full(experts, -1)
    return ExpertTensor(projection, tensor, "BF16", tuple(map(int, shape)), nowhere.astype(np.int32), nowhere)


def _values(switch: Any, projections: tuple[str, ...]) -> Values:
    """Compute all experts of a layer, once: mlx-lm's arrays are dropped on the way, so that only the result stays."""
    import mlx.core as mx

    out = {}
    for projection in projections:
        linear = switch[projection]
        for tensor, value in (("weight", _floats(linear)), ("bias", linear.get("bias"))):
            if value is not None:
                bits = np.array(mx.contiguous(value.astype(mx.bfloat16)).view(mx.uint16))
                out[f"{projection}.{tensor}"] = bits.view(np.uint8).reshape(len(bits), -1)
        for name in ("weight", "scales", "biases", "bias", "global_scale"):
            linear.pop(name, None)
    return out


def _floats(linear: Any) -> Any:
    import mlx.core as mx

    if "scales" not in linear:
        return linear.weight
    how = {"group_size": linear.group_size, "bits": linear.bits, "mode": linear.mode}
    factors = linear.get("global_scale")
    if factors is None:
        return mx.dequantize(linear.weight, linear.scales, linear.get("biases"), **how)
    experts = zip(linear.weight, linear.scales, factors, strict=True)
    return mx.stack([mx.dequantize(w, s, global_scale=f, **how) for w, s, f in experts])
