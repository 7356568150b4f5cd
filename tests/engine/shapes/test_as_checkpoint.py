"""Tests of shapes as checkpoints: equal to checkpoints with files in everything that headers tell."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import Knobs
from engine.plan.footprint import footprint
from engine.shapes.as_checkpoint import as_checkpoint
from engine.shapes.library import from_dict, shape
from engine.shapes.shape import Shape


def shape_of(path: Path, experts: str = "bf16") -> Shape:
    """The shape of a tiny checkpoint."""
    config = json.loads((path / "config.json").read_text())
    for key in ("quantization", "quantization_config"):
        config.pop(key, None)
        config.get("text_config", {}).pop(key, None)
    return from_dict(
        "tiny",
        {
            "title": "Tiny", "config": config, "published": {"experts": experts, "rest": "bf16"}, "checkpoints": [],
            "parameters": {"billion": None, "source": None}, "source": {"config": "", "read_from": "", "date": ""},
        },
    )  # fmt: skip


def described(checkpoint: Checkpoint) -> list[Any]:
    return [
        [(layer.number, dict(layer.zeros), layer.experts, sorted((t.name, t.dtype, t.shape) for t in layer.tensors))]
        for layer in checkpoint.layers
    ]


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss", "mixtral"])
@pytest.mark.parametrize("bits", [4, None])
def test_it_equals_a_checkpoint_with_files(checkpoint: Callable[..., Path], family: str, bits: int | None) -> None:
    path = checkpoint(family, bits)
    real, made = Checkpoint.open(path), as_checkpoint(shape_of(path), bits, 32)
    assert described(made) == described(real)
    assert (made.top_k, made.expert_bits, made.expert_bytes) == (real.top_k, real.expert_bits, real.expert_bytes)
    assert (made.rest_bytes, made.half_bytes) == (real.rest_bytes, real.half_bytes)


def test_int4_as_kimi_publishes_it(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("kimi_k25", "int4")
    real, made = Checkpoint.open(path), as_checkpoint(shape_of(path, "int4_g32"))
    of_shapes = (
        sum(layer.experts for layer in real.layers) * 3 * 2 * 4
    )  # each INT4 tensor has its shape, two int32, beside it
    assert (made.expert_bytes, made.rest_bytes + of_shapes) == (real.expert_bytes, real.rest_bytes)
    assert [layer.zeros for layer in made.layers] == [layer.zeros for layer in real.layers]


def test_memory_is_predicted_from_a_shape(checkpoint: Callable[..., Path]) -> None:
    path = checkpoint("qwen3_moe", 4)
    knobs = Knobs(cache_gb=0.0001)
    real, made = footprint(path, knobs).parts_gb, footprint(as_checkpoint(shape_of(path), 4, 32), knobs).parts_gb
    parts = ("resident", "experts", "kv", "activations", "staging")
    assert [getattr(made, part) for part in parts] == [getattr(real, part) for part in parts]


def test_every_layer_of_a_real_shape_is_sound() -> None:
    made = as_checkpoint(shape("gpt_oss_20b"))
    for layer in made.layers:
        layer.check()
    assert (
        made.fingerprint
        == as_checkpoint(shape("gpt_oss_20b")).fingerprint
        != as_checkpoint(shape("olmoe_1b_7b"), 4).fingerprint
    )
    assert np.unique([layer.experts for layer in made.layers]).tolist() == [32]
