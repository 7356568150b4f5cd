"""Opening checkpoints: where experts lie, and one clear line for everything that can be wrong with a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from engine import Checkpoint, CheckpointError, Knobs, footprint, load

Make = Callable[..., Path]


@pytest.fixture
def damaged(checkpoint: Make, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint("deepseek_v3", None, True), tmp_path / "damaged"))


@pytest.mark.parametrize(("family", "bits", "per_expert"), [("deepseek_v3", None, True), ("qwen3_moe", 4, False)])
def test_ranges_hold_what_mlx_loads(checkpoint: Make, family: str, bits: int, per_expert: bool) -> None:
    opened = Checkpoint.open(checkpoint(family, bits, per_expert))
    weights = mx.load(str(opened.files[0]))
    for layer in opened.layers:
        for tensor in layer.tensors:
            for expert in (0, layer.experts - 1):
                with open(opened.files[tensor.file[expert]], "rb") as f:
                    f.seek(tensor.offset[expert])
                    found = f.read(tensor.nbytes)
                if per_expert:
                    expected = weights[f"{layer.block}.experts.{expert}.{tensor.name}"]
                else:
                    expected = weights[f"{layer.block}.switch_mlp.{tensor.name}"][expert]
                kind = mx.uint16 if expected.dtype == mx.bfloat16 else expected.dtype
                assert found == np.array(expected.view(kind)).tobytes()


def test_shapes_tell_the_quantization(checkpoint: Make) -> None:
    assert Checkpoint.open(checkpoint("qwen3_moe", 3)).layers[0].quantization("down_proj") == {
        "group_size": 32, "bits": 3, "mode": "affine",
    }  # fmt: skip
    assert Checkpoint.open(checkpoint("qwen3_moe", 3)).expert_bits == 3
    assert Checkpoint.open(checkpoint("deepseek_v3", None, True)).layers[0].quantization("up_proj") is None


def test_footprint_adds_up(checkpoint: Make) -> None:
    path = checkpoint("deepseek_v3", None, True)
    f = footprint(path)
    expert = 3 * 64 * 32 * 4  # three projections in float32, as the CPU computes
    assert f.one_token_gb * 1e9 == pytest.approx(3 * 4 * expert)
    assert f.all_experts_gb * 1e9 == pytest.approx(3 * 16 * expert)
    half = footprint(path, Knobs(expert_bits=4))
    assert half.one_token_gb < f.one_token_gb / 4


def test_fingerprint_follows_the_content_not_the_place(checkpoint: Make, damaged: Path) -> None:
    original = Checkpoint.open(checkpoint("deepseek_v3", None, True)).fingerprint
    assert Checkpoint.open(damaged).fingerprint == original
    file = damaged / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Checkpoint.open(damaged).fingerprint != original


def one_line(error: pytest.ExceptionInfo[CheckpointError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is not a folder; give"):
        Checkpoint.open(tmp_path / "nowhere")


def test_no_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json; give"):
        Checkpoint.open(tmp_path)


def test_no_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "deepseek_v3"}')
    with pytest.raises(CheckpointError, match=r"no model\*\.safetensors"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("content", ["{", '["a"]', "{}"])
def test_bad_config(damaged: Path, content: str) -> None:
    (damaged / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json") as e:
        Checkpoint.open(damaged)
    one_line(e)


@pytest.mark.parametrize("keep", [4, 100, 0.5])
def test_truncated(damaged: Path, keep: float) -> None:
    file = damaged / "model.safetensors"
    size = file.stat().st_size
    content = file.read_bytes()[: int(keep * size) if keep < 1 else int(keep)]
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"truncated.*copy it again") as e:
        load(damaged)
    one_line(e)


def test_damaged_header(damaged: Path) -> None:
    file = damaged / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:12] = b"\x00\x00\x00\x00"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged header"):
        Checkpoint.open(damaged)


def test_missing_shard(damaged: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (damaged / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lacks 1 of 2 shards \(model-00002-of-00002\.safetensors"):
        Checkpoint.open(damaged)


def test_missing_expert(damaged: Path) -> None:
    weights = mx.load(str(damaged / "model.safetensors"))
    del weights["model.layers.2.mlp.experts.3.up_proj.weight"]
    mx.save_safetensors(str(damaged / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=r"up_proj\.weight for 15 of 16 experts"):
        Checkpoint.open(damaged)


def test_a_type_that_cannot_be_streamed(damaged: Path) -> None:
    weights = mx.load(str(damaged / "model.safetensors"))
    weights["model.layers.2.mlp.experts.3.up_proj.weight_scale_inv"] = mx.ones((1, 1))
    mx.save_safetensors(str(damaged / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=r"weight_scale_inv \(F32\) cannot be streamed in place; convert"):
        Checkpoint.open(damaged)


def test_not_a_mixture_of_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"model.embed_tokens.weight": mx.zeros((4, 4))})
    with pytest.raises(CheckpointError, match=r"\(llama\) has no routed experts.*Mixture-of-Experts"):
        load(tmp_path)


def test_an_architecture_that_mlx_lm_lacks(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "model_type": "moonbeam"}))
    with pytest.raises(CheckpointError, match=r"mlx-lm cannot open moonbeam \(Model type moonbeam not supported"):
        load(damaged)


def test_missing_resident_tensor(damaged: Path) -> None:
    weights = mx.load(str(damaged / "model.safetensors"))
    del weights["model.norm.weight"]
    mx.save_safetensors(str(damaged / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=r"mlx-lm cannot open deepseek_v3 \(Missing") as e:
        load(damaged)
    one_line(e)
