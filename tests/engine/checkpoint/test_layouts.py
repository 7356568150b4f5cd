"""Layouts: what can be streamed in place, and what cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.utils import load_model
from tiny_originals import make_fp8, make_gpt_oss_original

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


def test_a_type_that_cannot_be_streamed(checkpoint: Make) -> None:
    with pytest.raises(CheckpointError, match=r"down_proj\.\w+ is in FP8 with block scales .* pack the model first") as e:
        Checkpoint.open(checkpoint("deepseek_v3", "fp8"))
    one_line(e)


def test_a_layout_that_mlx_lm_cannot_open(checkpoint: Make, tmp_path: Path) -> None:
    """FP8 of a family whose code in mlx-lm does not read it: neither packing nor converting would help."""
    path = make_fp8(tmp_path / "fp8", "qwen3_moe")
    with pytest.raises(ValueError, match="parameters not in model"):
        load_model(path)
    for to_pack in (False, True):
        with pytest.raises(CheckpointError, match=r"in a layout that mlx-lm cannot open .* as mlx-lm has converted it") as e:
            Checkpoint.open(path, to_pack=to_pack)
        assert len(one_line(e)) < 500


def test_an_original_whose_experts_are_no_byte_ranges(tmp_path: Path) -> None:
    """gpt_oss: mlx-lm opens it, but the rows of gate and up alternate; one line names the tensor and the remedy."""
    path = make_gpt_oss_original(tmp_path / "gpt_oss")
    load_model(path)
    with pytest.raises(CheckpointError, match=r"mlp\.\w+_proj\.\w+ is not one byte range.*pack the model") as e:
        load(path)
    one_line(e)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "glm4_moe_lite", "qwen3_next", "qwen3_5_moe", "nemotron_h"])
def test_layers_for_multi_token_prediction_are_left_out(checkpoint: Make, family: str) -> None:
    """These layers hold experts, with a new or an existing number; the sizes are those of the model without them."""
    original, plain = Checkpoint.open(checkpoint(family, "original")), Checkpoint.open(checkpoint(family))
    assert original.tensors > 0 and len(original.layers) == len(plain.layers)
    assert not any("mtp" in layer.block for layer in original.layers)
    assert original.rest_bytes == plain.rest_bytes and original.expert_bytes == plain.expert_bytes
