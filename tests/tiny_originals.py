"""Originals of the tiny checkpoints: what mlx-lm's `sanitize` does is undone, and their widths are those of the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlx.core as mx
from tiny import make, one_tensor_an_expert, write_in_order

# Where originals keep a layer for multi-token prediction, which mlx-lm drops.
PREDICTION = {
    "deepseek_v3": "model.layers.61.", "glm4_moe": "model.layers.6.", "glm4_moe_lite": "model.layers.6.",
    "qwen3_next": "mtp.layers.0.", "qwen3_5_moe": "mtp.layers.0.", "nemotron_h": "mtp.layers.0.",
}  # fmt: skip


def make_original(path: Path, family: str, sizes: dict[str, int] | None = None) -> Path:
    """The checkpoint that `make` makes in bf16, as originals on the hub have it: what mlx-lm's `sanitize` does is undone,
    and what it drops (multi-token prediction, vision) is there."""
    make(path, family, sizes=sizes)
    weights = dict(mx.load(str(path / "model.safetensors")))
    if family in ("granitemoe", "qwen3_5_moe"):
        weights = _gate_above_up(weights, *(("input_linear.weight", "output_linear.weight") if family == "granitemoe"
                                            else ("experts.gate_up_proj", "experts.down_proj")))  # fmt: skip
    weights = one_tensor_an_expert(weights, family)
    for name in list(weights):
        if name.endswith("embed_q.weight"):
            keys, values = weights.pop(name), weights.pop(name.replace("embed_q", "unembed_out"))
            joined = mx.concatenate([keys.swapaxes(-1, -2), values], axis=1)
            weights[name.replace("embed_q", "kv_b_proj")] = joined.reshape(-1, joined.shape[-1])
        elif "conv1d.weight" in name or name.endswith("conv.conv.weight"):
            weights[name] = weights[name].swapaxes(1, 2)
        elif family in ("qwen3_next", "qwen3_5_moe") and "norm.weight" in name and "linear_attn" not in name:
            weights[name] = weights[name] - 1
    if family in PREDICTION:
        last = max((n for n in weights if "experts" in n), key=lambda n: int(re.search(r"layers\.(\d+)", n)[1]))
        last = last[: re.search(r"layers\.\d+\.", last).end()]
        weights.update({PREDICTION[family] + n[len(last) :]: -v for n, v in weights.items() if n.startswith(last)})
    if family == "qwen3_5_moe":
        renamed = {n.replace("language_model.model.", "model.language_model."): v for n, v in weights.items()}
        weights = {n.removeprefix("language_model."): v for n, v in renamed.items()}
        weights["model.visual.blocks.0.norm1.weight"] = mx.ones(64)
    if family == "kimi_k25":
        weights |= {"vision_tower.blocks.0.norm1.weight": mx.ones(64), "mm_projector.linear_1.weight": mx.ones((64, 64))}
    write_in_order(path / "model.safetensors", weights)
    return path


def _gate_above_up(weights: dict[str, mx.array], both: str, down: str) -> dict[str, mx.array]:
    for name in [n for n in weights if n.endswith("switch_mlp.gate_proj.weight")]:
        block = name.removesuffix("switch_mlp.gate_proj.weight")
        halves = [weights.pop(f"{block}switch_mlp.{projection}.weight") for projection in ("gate_proj", "up_proj")]
        weights[block + both] = mx.concatenate(halves, axis=1)
        weights[block + down] = weights.pop(f"{block}switch_mlp.down_proj.weight")
    return weights


def make_gpt_oss_original(path: Path) -> Path:
    """gpt_oss as on the hub: mxfp4 blocks with the rows of gate and up in turns, so that neither is one byte range."""
    make(path, "gpt_oss", bits="mxfp4")
    weights = dict(mx.load(str(path / "model.safetensors")))
    for name in [n for n in weights if ".experts." in n]:
        value = weights.pop(name)
        if name.endswith(".weight"):
            value = value.view(mx.uint8).reshape(*value.shape[:2], -1, 16)
        kind = {"weight": "_blocks", "scales": "_scales", "bias": "_bias"}[name.rpartition(".")[2]]
        weights[name.rpartition(".")[0] + kind] = value
    for up in [n for n in weights if "up_proj" in n]:
        turns = mx.stack([weights.pop(up.replace("up_proj", "gate_proj")), weights.pop(up)], axis=2)
        weights[up.replace("up_proj", "gate_up_proj")] = turns.reshape(turns.shape[0], -1, *turns.shape[3:])
    write_in_order(path / "model.safetensors", weights)
    return path


def make_int4(path: Path, family: str = "kimi_k25") -> Path:
    """Kimi K2.5's own layout: experts in compressed-tensors INT4 (groups of 32, no zero point), all else in bf16."""
    make_original(path, family)
    file = path / "model.safetensors"
    weights = dict(mx.load(str(file)))
    for name in [n for n in weights if ".experts." in n and n.endswith("_proj.weight")]:
        value = weights.pop(name)
        groups = value.astype(mx.float32).reshape(value.shape[0], -1, 32)
        scale = (mx.abs(groups).max(axis=-1) / 7).astype(mx.bfloat16)
        codes = mx.clip(mx.round(groups / scale[..., None].astype(mx.float32)), -8, 7).astype(mx.int32) + 8
        eights = codes.reshape(value.shape[0], -1, 8).astype(mx.uint32)
        packed = (eights << (4 * mx.arange(8, dtype=mx.uint32))).sum(axis=-1).astype(mx.uint32)
        weights[f"{name}_packed"], weights[f"{name}_scale"] = packed.view(mx.int32), scale
        weights[f"{name}_shape"] = mx.array(value.shape, dtype=mx.int32)
    write_in_order(file, weights)
    config = json.loads((path / "config.json").read_text())
    config.get("text_config", config)["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": "pack-quantized"
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path


def make_fp8(path: Path, family: str) -> Path:
    """DeepSeek's own layout: linear layers in FP8 (E4M3) with a scale for each block of 128 x 128, experts among them, all
    else in bf16; no side of an expert is a multiple of 128."""
    inner = "intermediate_size" if family == "minimax" else "moe_intermediate_size"
    make_original(path, family, {"hidden_size": 192, inner: 160})
    file = path / "model.safetensors"
    weights = dict(mx.load(str(file)))
    linear = re.compile(r".*\.(\w+_proj|q_[ab]_proj|kv_a_proj_with_mqa|w[123])\.weight$")
    for name in [n for n in weights if linear.match(n)]:
        value = weights[name].astype(mx.float32)
        rows, columns = (-(-n // 128) for n in value.shape)
        padded = mx.pad(value, [(0, rows * 128 - value.shape[0]), (0, columns * 128 - value.shape[1])])
        blocks = padded.reshape(rows, 128, columns, 128)
        scale = mx.abs(blocks).max(axis=(1, 3)) / 448  # the largest value of E4M3
        codes = mx.to_fp8(blocks / scale[:, None, :, None]).reshape(padded.shape)
        weights[name] = codes[: value.shape[0], : value.shape[1]]
        weights[f"{name}_scale_inv"] = scale
    write_in_order(file, weights)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128]
    }  # fmt: skip
    (path / "config.json").write_text(json.dumps(config))
    return path
