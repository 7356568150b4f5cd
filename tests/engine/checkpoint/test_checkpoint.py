"""Opening checkpoints: where experts lie, and one clear line for everything that can be wrong with a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.utils import load_model
from tiny import make_gpt_oss_original, make_sparse_kimi

from engine import Checkpoint, CheckpointError, Knobs, footprint, load
from engine.__main__ import main

Make = Callable[..., Path]
Header = dict[str, Any]


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


def edit(path: Path, change: Callable[[Header], None]) -> None:
    """Change a checkpoint's header; its data stays."""
    file = path / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    file.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + length :])


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
    with pytest.raises(CheckpointError, match=r"weight_scale_inv \(F32\) cannot be streamed in place; pack the model first"):
        Checkpoint.open(damaged)


def test_not_a_mixture_of_experts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 1}')
    mx.save_safetensors(str(tmp_path / "model.safetensors"), {"model.embed_tokens.weight": mx.zeros((4, 4))})
    with pytest.raises(CheckpointError, match=r"\(llama\) has no routed experts.*Mixture-of-Experts"):
        load(tmp_path)


def test_an_architecture_that_mlx_lm_lacks(damaged: Path) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, "model_type": "moonbeam"}))
    with pytest.raises(CheckpointError, match="mlx-lm has no architecture moonbeam"):
        load(damaged)


def test_missing_resident_tensor(damaged: Path) -> None:
    weights = mx.load(str(damaged / "model.safetensors"))
    del weights["model.norm.weight"]
    mx.save_safetensors(str(damaged / "model.safetensors"), weights)
    with pytest.raises(CheckpointError, match=r"mlx-lm cannot open deepseek_v3 \(Missing") as e:
        load(damaged)
    one_line(e)


EXPERT = "model.layers.2.mlp.experts.3.up_proj.weight"  # 4096 bytes of BF16 [32, 64]


def offsets(*values: int) -> Callable[[Header], None]:
    return lambda header: header[EXPERT].update(data_offsets=list(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h[EXPERT].update(data_offsets=[at + (1 << 40) for at in h[EXPERT]["data_offsets"]]), "truncated or its"),
        (offsets(-4096, 0), "has a damaged entry"),
        (offsets(4096, 0), r"lies at bytes 4096 to 0 of \d+; copy it again"),
        (offsets(0, 4096), r"ends at byte \d+, but .* begins at 0"),
        (offsets(0, 4095), r"takes 4096 bytes as BF16 of shape \[32, 64\], but has 4095; copy it again"),
        (lambda h: h[EXPERT].update(shape=[32, 65]), r"takes 4160 bytes .* but has 4096"),
        (lambda h: h[EXPERT].update(dtype="BF17"), "unknown dtype 'BF17' .known: F64, "),
        (lambda h: h[EXPERT].update(dtype=["BF16"]), "has a damaged entry"),
        (lambda h: h[EXPERT].update(shape=[32.0, 64]), "has a damaged entry"),
        (lambda h: h[EXPERT].pop("shape"), "has a damaged entry"),
        (lambda h: h.update({EXPERT: 5}), "has a damaged entry"),
        (lambda h: h[EXPERT].update(shape=[64, 32]), r"up_proj\.weight for 16 of 16 experts in 2 shapes"),
        (lambda h: h.update({EXPERT + "_scale_inv": h.pop(EXPERT)}), "weight_scale_inv .* cannot be streamed in place"),
        (lambda h: h.update({EXPERT.replace("up_proj", "w3"): h[EXPERT]}), "ends at byte"),
    ],
)
def test_a_header_that_lies(damaged: Path, change: Callable[[Header], None], message: str) -> None:
    edit(damaged, change)
    for knobs in (Knobs(), Knobs(cache_gb=0.001)):
        with pytest.raises(CheckpointError, match=message) as e:
            load(damaged, knobs)
        assert str(damaged) in one_line(e)


@pytest.mark.parametrize(
    "header", [b"[]", b"7", b'{"a": 1, "a": 2}', b"[" * 9000, b"\xff\xfe", b'{"__metadata__": {}, "a\\n": 3}']
)
def test_a_header_that_is_no_table_of_tensors(damaged: Path, header: bytes) -> None:
    (damaged / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match=r"damaged (header|entry).*copy it again") as e:
        Checkpoint.open(damaged)
    one_line(e)


@pytest.mark.parametrize("length", [0, 1, 1 << 20, 1 << 62, (1 << 64) - 1])
def test_a_header_of_another_length(damaged: Path, length: int) -> None:
    file = damaged / "model.safetensors"
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="copy it again") as e:
        Checkpoint.open(damaged)
    one_line(e)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"weight_map": {"nothing.weight": "model.safetensors"}},
            r"model\.safetensors lacks 'nothing\.weight'.*copy the shard",
        ),
        ({"weight_map": ["model.safetensors"]}, "index.json is damaged; copy it again, or remove it"),
        ({"weight_map": {"a": 5}}, r"is damaged|lacks"),
        ([], "is damaged"),
    ],
)
def test_an_index_that_lies(damaged: Path, content: object, message: str) -> None:
    (damaged / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message) as e:
        Checkpoint.open(damaged)
    one_line(e)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_routed_experts": 15}, r"has 16 experts, but config\.json has n_routed_experts=15; copy both"),
        ({"moe_intermediate_size": 64}, r"has 32 rows per expert, but config\.json has moe_intermediate_size=64"),
        ({"hidden_size": 32}, r"has 64 columns per expert, but config\.json has hidden_size=32"),
        ({"num_hidden_layers": 5}, r"has experts in 3 layers \(1 to 3\), but config\.json has 4 \(1 to 4\)"),
        ({"num_hidden_layers": 3, "first_k_dense_replace": 0}, r"has experts in 2 layers \(1 to 2\).*says 3 \(0 to 2\)"),
        ({"num_experts_per_tok": 17}, "num_experts_per_tok=17, not 1 to 16 experts"),
        ({"num_attention_heads": 3}, "mlx-lm cannot open deepseek_v3"),
        ({"vocab_size": "many"}, "mlx-lm cannot open deepseek_v3"),
        ({"text_config": 3}, "text_config=3"),
    ],
)
def test_a_configuration_of_another_model(damaged: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps({**config, **change}))
    for knobs in (Knobs(), Knobs(cache_gb=0.001)):
        if "num_experts_per_tok" in change and knobs == Knobs():
            continue  # mlx-lm's own words for it
        with pytest.raises(CheckpointError, match=message) as e:
            load(damaged, knobs)
        one_line(e)


@pytest.mark.parametrize(
    "wrong", [{"bits": 4, "group_size": 32}, {"bits": 3, "group_size": 64}, {"bits": 3, "mode": "mxfp4"}]
)
def test_a_quantization_that_the_configuration_denies(checkpoint: Make, tmp_path: Path, wrong: dict[str, Any]) -> None:
    path = Path(shutil.copytree(checkpoint("qwen3_moe", 3), tmp_path / "copy"))
    config = json.loads((path / "config.json").read_text())
    config["quantization"]["model.layers.1.mlp.switch_mlp.up_proj"] = wrong
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.mlp\.switch_mlp\.up_proj is .*'bits': 3.* but config\.json has"
    ) as e:
        Checkpoint.open(path)
    one_line(e)


def test_codes_of_another_type(checkpoint: Make, tmp_path: Path) -> None:
    path = Path(shutil.copytree(checkpoint("qwen3_moe", 3), tmp_path / "copy"))
    (path / "model.safetensors.index.json").unlink()
    edit(path, lambda header: header["model.layers.1.mlp.switch_mlp.up_proj.weight"].update(dtype="F32"))
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj has .*weight F32 .*copy the checkpoint again") as e:
        Checkpoint.open(path)
    one_line(e)


def test_one_name_in_two_shards(damaged: Path) -> None:
    shutil.copy(damaged / "model.safetensors", damaged / "model-2.safetensors")
    with pytest.raises(CheckpointError, match="is in another shard as well; remove one"):
        Checkpoint.open(damaged)


def test_an_original_whose_experts_are_no_byte_ranges(tmp_path: Path) -> None:
    """gpt_oss: mlx-lm opens it, but the rows of gate and up are in turns; one line names the tensor and the remedy."""
    path = make_gpt_oss_original(tmp_path / "gpt_oss")
    load_model(path)
    with pytest.raises(CheckpointError, match=r"mlp\.experts\.\w+_proj_\w+ is not one byte range.*pack the model") as e:
        load(path)
    one_line(e)


def test_what_mlx_lm_changes_on_the_way_is_not_streamed(checkpoint: Make, tmp_path: Path) -> None:
    """gate_up_proj may be transposed in other families; where shapes cannot tell, only families that are known stream."""
    path = Path(shutil.copytree(checkpoint("qwen3_5_moe", "original"), tmp_path / "copy"))
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "qwen3_vl_moe"}))
    with pytest.raises(CheckpointError, match=r"experts\.\w+_proj is not one byte range per expert"):
        load(path)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "glm4_moe_lite", "qwen3_next", "qwen3_5_moe", "nemotron_h"])
def test_layers_for_multi_token_prediction_are_left_out(checkpoint: Make, family: str) -> None:
    """They hold experts, under another number or under the same one; the sizes are those of the model without them."""
    original, plain = Checkpoint.open(checkpoint(family, "original")), Checkpoint.open(checkpoint(family))
    assert original.tensors > 0 and len(original.layers) == len(plain.layers)
    assert not any("mtp" in layer.block for layer in original.layers)
    assert original.rest_bytes == plain.rest_bytes and original.expert_bytes == plain.expert_bytes


@pytest.mark.slow
def test_kimi_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Kimi K2.5's original in its full shape, all holes: the right sizes, in little memory."""
    path = make_sparse_kimi(tmp_path / "kimi")
    assert main(["bench", "open", str(path)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["tensors"], result["files"], result["layers"], result["mlx_lm"]["switches"]) == (208_215, 61, 60, 60)
    expert = 3 * 2048 * 7168 * 4.5 / 8 / 1e9  # four bits, and sixteen for every 32 weights
    assert result["one_token_read_gb"] == pytest.approx(60 * 8 * expert) == pytest.approx(11.9, abs=0.05)
    assert result["experts_gb"] == pytest.approx(60 * 384 * expert) and result["apparent_gb"] == pytest.approx(
        594.2, abs=0.1
    )
    assert result["slots"] == 60 * 384 // 2
    assert result["peak_gb"] < 1.5 and result["mlx_lm"]["peak_gb"] < 1.5
    in_memory = 3 * 2048 * 7168 * (4 + 2 * 32 / 32) / 8 / 1e9  # scales and biases in float32 on the CPU
    assert result["one_token_slots_gb"] == pytest.approx(60 * 8 * in_memory)
    assert result["resident_gb"] == pytest.approx(2 * 23.4, abs=0.1)
