"""Layouts: what can be streamed in place, and what cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model
from tiny import make_gpt_oss_original

from engine import Checkpoint, CheckpointError, load

Make = Callable[..., Path]


@pytest.fixture
def damaged(checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("deepseek_v3", None, True), tmp_path / "damaged"))


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_expert(damaged: Path) -> None:
    weights = mx.load(str(damaged / "model.safetensors"))
    del weights["model.layers.2.mlp.experts.3.up_proj.weight"]
    mx.save_safetensors(str(damaged / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=r"lacks .*layers\.2\.mlp\.experts\.3\.up_proj\.weight, which mlx-lm needs"):
        Checkpoint.open(damaged)


def test_a_type_that_cannot_be_streamed(damaged: Path) -> None:
    weights = mx.load(str(damaged / "model.safetensors"))
    weights["model.layers.2.mlp.experts.3.up_proj.weight_scale_inv"] = mx.ones((1, 1))
    mx.save_safetensors(str(damaged / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=r"weight_scale_inv \(F32\) cannot be streamed in place; pack the model first"):
        Checkpoint.open(damaged)


def test_an_original_whose_experts_are_no_byte_ranges(tmp_path: Path) -> None:
    """gpt_oss: mlx-lm opens it, but the rows of gate and up alternate; one line names the tensor and the remedy."""
    path = make_gpt_oss_original(tmp_path / "gpt_oss")
    load_model(path)
    with pytest.raises(CheckpointError, match=r"mlp\.experts\.\w+_proj_\w+ is not one byte range.*pack the model") as e:
        load(path)
    one_line(e)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "glm4_moe_lite", "qwen3_next", "qwen3_5_moe", "nemotron_h"])
def test_layers_for_multi_token_prediction_are_left_out(checkpoint: Make, family: str) -> None:
    """These layers hold experts, with a new or an existing number; the sizes are those of the model without them."""
    original, plain = Checkpoint.open(checkpoint(family, "original")), Checkpoint.open(checkpoint(family))
    assert original.tensors > 0 and len(original.layers) == len(plain.layers)
    assert not any("mtp" in layer.block for layer in original.layers)
    assert original.rest_bytes == plain.rest_bytes and original.expert_bytes == plain.expert_bytes
