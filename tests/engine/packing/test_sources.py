"""Sources: experts of every layout are decoded as mlx-lm decodes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP
from mlx_lm.utils import load_model
from stores import by_mlx_lm, float_weights, logits, off, streamed
from tiny import ORIGINALS

from engine import Checkpoint, CheckpointError, Knobs, footprint, load
from engine.packing.sources import SourceLayer
from engine.packing.verify import verify_store

Make = Callable[..., Path]
TOKENS = np.random.default_rng(7).integers(0, 255, 40)


def parameters(model: Any) -> dict[str, mx.array]:
    """Parameters of the model without the experts'."""
    paths = tuple(f"{path}." for path, m in model.named_modules() if isinstance(m, SwitchGLU | SwitchMLP))
    return {name: value for name, value in tree_flatten(model.parameters()) if not name.startswith(paths)}


@pytest.mark.parametrize("family", ORIGINALS)
def test_originals_open_as_stores(checkpoint: Make, store: Make, family: str) -> None:
    """mlx-lm's changes on loading (norms, convolutions, halves of attention) also apply to a store's resident tensors."""
    packed = store(family, "original")
    model, _ = load_model(checkpoint(family, "original"), lazy=True)
    model.set_dtype(mx.float32)
    expected = parameters(model)
    with load(packed, Knobs(expert_bits=2)) as engine:
        found = parameters(engine.model)
        low = engine.logits(TOKENS)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(np.array(found[name]), np.array(value)) for name, value in expected.items())
    source, whole = logits(checkpoint(family, "original")), streamed(packed)
    assert 0 < off(whole, source) < off(low, source) < 1.6
    assert np.array_equal(logits(packed, expert_bits=2), low)


def decoded(path: Path) -> dict[tuple[str, str], np.ndarray]:
    """(block, projection) -> float32 [experts, rows, columns], decoded by the packer."""
    source = Checkpoint.open(path, to_pack=True)
    out = {}
    for layer in source.layers:
        numbers = SourceLayer(layer, (128, 128))
        for name, kind in numbers.kinds.items():
            experts = []
            for expert in range(layer.experts):
                stored = {}
                for t in numbers.tensors(name):
                    with open(source.files[t.file[expert]], "rb") as f:
                        f.seek(t.offset[expert])
                        stored[t.name] = t.from_stored(np.frombuffer(f.read(t.stored_bytes), np.uint8))
                assert kind.mode != "affine"
                experts.append(numbers.weights(name, stored))
            out[layer.block, name] = np.stack(experts)
    return out


@pytest.mark.parametrize("model", [
    ("deepseek_v3", "fp8"), ("kimi_k2", "fp8"), ("minimax", "fp8"), ("gpt_oss", "original"), ("gpt_oss", "mxfp4"),
    ("minimax", "mxfp8"), ("qwen3_moe", "nvfp4"), ("mixtral", None), ("granitemoe", "original"),
], ids=str)  # fmt: skip
def test_sources_are_read_as_mlx_lm_reads_them(checkpoint: Make, model: tuple[Any, ...]) -> None:
    theirs, _ = load_model(checkpoint(*model), lazy=True)
    found = decoded(checkpoint(*model))
    assert len(found) >= 9
    for (block, name), value in found.items():
        assert np.array_equal(value, float_weights(theirs, block.removesuffix(".experts"), name))


@pytest.mark.parametrize(
    "model", [("deepseek_v3", "fp8"), ("kimi_k2", "fp8"), ("minimax", "fp8"), ("gpt_oss", "original")], ids=str
)
def test_what_can_only_be_packed(checkpoint: Make, store: Make, model: tuple[Any, ...]) -> None:
    source = checkpoint(*model)
    with pytest.raises(CheckpointError, match=r"cannot be streamed in place; pack the model first"):
        load(source)
    expected = by_mlx_lm(source)
    four, eight = store(*model), store(*model, levels=(2, 4, 8))
    assert off(logits(eight), expected) < 0.15 < off(logits(four, expert_bits=2), expected)
    assert off(logits(eight), expected) < off(logits(four), expected) < off(logits(four, expert_bits=2), expected)
    assert np.array_equal(streamed(four), logits(four))
    assert verify_store(eight) == []
    with load(four) as engine:  # mlx-lm widens what is in FP8
        resident = sum(value.nbytes for value in parameters(engine.model).values())
    assert footprint(four).resident_gb * 1e9 == pytest.approx(resident, rel=0.02)
