"""Resident weights: quantized as mlx-lm quantizes them, routers excepted, and never widened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.utils import load_model

from engine import Engine, KnobError, Knobs, footprint, load
from engine.model.switches import switches

Make = Callable[..., Path]
IDS = [int(i) for i in np.random.default_rng(5).integers(0, 250, 48)]


def plain(path: Path) -> nn.Module:
    model, _ = load_model(path)
    model.set_dtype(mx.float32)
    return model


@pytest.mark.parametrize("bits", [8, 3])
@pytest.mark.parametrize(
    ("family", "stored"), [("deepseek_v3", None), ("granitemoe", None), ("qwen3_next", None), ("kimi_k25", "original")]
)
def test_resident_bits_equals_mlx_quantization(checkpoint: Make, family: str, stored: str | None, bits: int) -> None:
    path = checkpoint(family, stored)
    model = plain(path)
    own = getattr(model, "quant_predicate", lambda path, module: True)

    def chosen(name: str, module: Any) -> bool | dict[str, int]:
        router = name.endswith((".gate", "router.layer", "shared_expert_gate"))
        if (
            isinstance(module, SwitchLinear)
            or not hasattr(module, "to_quantized")
            or router
            or own(name, module) is not True
        ):
            return False
        columns = module.weight.shape[-1]
        return columns % 32 == 0 and {"group_size": 64 if columns % 64 == 0 else 32, "bits": bits}

    nn.quantize(model, class_predicate=chosen)
    expected = np.array(model(mx.array([IDS]))[0])
    for knobs in (Knobs(resident_bits=bits), Knobs(resident_bits=bits, cache_gb=footprint(path).one_token_gb)):
        with load(path, knobs) as engine:
            assert np.array_equal(engine.logits(IDS), expected)
            assert resident_bytes(engine) == round(footprint(path, knobs).resident_gb * 1e9)
    with load(path) as engine:
        assert resident_bytes(engine) == round(footprint(path).resident_gb * 1e9) > resident_bytes_of(model)


def resident_bytes(engine: Engine) -> int:
    experts = tuple(f"{path}." for path, _ in switches(engine.model, engine.checkpoint))
    return sum(v.nbytes for name, v in tree_flatten(engine.model.parameters()) if not name.startswith(experts))


def resident_bytes_of(model: nn.Module) -> int:
    experts = (SwitchLinear, QuantizedSwitchLinear)
    inside = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, experts))
    return sum(v.nbytes for name, v in tree_flatten(model.parameters()) if not name.startswith(inside))


def test_resident_bits_below_those_stored(checkpoint: Make) -> None:
    """Modules with more bits are requantized; modules with as few bits and routers stay as they are."""
    path = checkpoint("qwen3_moe", 8)
    model = plain(path)
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding) and not name.endswith(".gate"):
            wide = mx.dequantize(module.weight, module.scales, module.biases, group_size=32, bits=8)
            module.weight, module.scales, module.biases = mx.quantize(wide, 64, 4)
            module.group_size, module.bits = 64, 4
    with load(path, Knobs(resident_bits=4)) as engine:
        assert np.array_equal(engine.logits(IDS), np.array(model(mx.array([IDS]))[0]))
    with pytest.raises(KnobError, match=r"resident_bits=8 has no effect: no weights of qwen3_moe-8 except experts"):
        load(path, Knobs(resident_bits=8))
