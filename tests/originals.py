"""Originals whose experts mlx-lm's `sanitize` takes apart: the tiny checkpoints of `tiny`, with what it does undone."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import mlx.core as mx
import tiny

from engine import Checkpoint, CheckpointError

Weights = dict[str, mx.array]
HUB_CONFIG = {
    "mxfp8": {"quant_method": "mxfp8"}, "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "compressed": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"},
}  # fmt: skip
SWITCH = re.compile(r"^(?P<block>.+)\.(?:switch_mlp|switch_glu|experts)\.(?P<projection>gate_proj|fc1)\.weight$")

_TEXT = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma4": {
        "model_type": "gemma4", "vocab_size": 256,
        "text_config": {
            **_TEXT, "model_type": "gemma4_text", "global_head_dim": 16, "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2,
            "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 32,
            "use_double_wide_mlp": False, "vocab_size_per_layer_input": 256,
        },
    },
    "mistral4": {
        **_TEXT, "model_type": "mistral4", "n_shared_experts": 1, "n_routed_experts": 8, "routed_scaling_factor": 1.0,
        "kv_lora_rank": 32, "q_lora_rank": 32, "norm_topk_prob": True, "topk_group": 1, "num_experts_per_tok": 2,
        "first_k_dense_replace": 0, "n_group": 1, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
        "num_key_value_heads": 4,
        "rope_parameters": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
                            "rope_theta": 10000.0, "llama_4_scaling_beta": 0.1},
    },
    "llama4": {
        "model_type": "llama4",
        "text_config": {
            **_TEXT, "model_type": "llama4", "attention_bias": False, "attention_chunk_size": 8,
            "interleave_moe_layer_step": 1, "intermediate_size": 32, "intermediate_size_mlp": 32,
            "num_experts_per_tok": 1, "num_local_experts": 8, "rope_scaling": None, "use_qk_norm": True,
        },
    },
    "qwen3_vl_moe": {
        "model_type": "qwen3_vl_moe",
        "text_config": {
            **_TEXT, "model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": [], "num_experts_per_tok": 2,
            "num_experts": 8, "norm_topk_prob": True,
        },
    },
    "step3p5": {
        **_TEXT, "model_type": "step3p5", "num_attention_groups": 2, "moe_num_experts": 8, "moe_top_k": 2,
        "share_expert_dim": 32, "moe_layers_enum": "0,1,2,3", "sliding_window": 16,
    },
    "phixtral": {
        "model_type": "phixtral", "num_vocab": 256, "model_dim": 64, "num_heads": 4, "num_layers": 4, "rotary_dim": 8,
        "num_experts_per_tok": 2, "num_local_experts": 4,
    },
    "minimax_m3_vl": {
        "model_type": "minimax_m3_vl",
        "text_config": {
            **_TEXT, "model_type": "minimax_m3", "intermediate_size": 32, "dense_intermediate_size": 96,
            "shared_intermediate_size": 32, "num_local_experts": 8, "num_experts_per_tok": 2,
            "mlp_layer_types": ["sparse"] * 4, "layer_types": ["full_attention"] * 4,
        },
    },
    "kimi_k3": {
        "model_type": "kimi_k3",
        "text_config": {
            **_TEXT, "model_type": "kimi_linear", "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32,
            "linear_attn_config": {"num_heads": 4, "head_dim": 16, "short_conv_kernel_size": 4, "kda_layers": [1, 2, 3],
                                   "full_attn_layers": [4]},
            "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16, "num_experts": 8,
            "num_experts_per_token": 2, "num_shared_experts": 1, "activation_situ_beta": 1.0, "attn_res_block_size": 2,
        },
    },
    "muse_spark": {
        "model_type": "muse_spark",
        "text_config": {
            **_TEXT, "post_norm_eps": 1e-5, "rope_parameters": {"rope_theta": 10000.0}, "layer_rope_theta": [10000.0] * 4,
            "layer_types": ["full_attention"] * 4, "sliding_window": 16, "final_logit_softcapping": 30.0,
            "output_multiplier": 1.0, "num_local_experts": 8, "num_experts_per_tok": 2, "moe_hidden_size": 64,
        },
    },
    "granitemoehybrid": {
        **_TEXT, "model_type": "granitemoehybrid", "intermediate_size": 32, "attention_bias": False,
        "embedding_multiplier": 2.0, "attention_multiplier": 0.1, "logits_scaling": 4.0, "residual_multiplier": 0.5,
        "layer_types": ["attention"] * 4, "num_local_experts": 8, "num_experts_per_tok": 2,
        "shared_intermediate_size": 32,
    },
}  # fmt: skip


def make_stored(path: Path, layout: str, *, dtype: mx.Dtype = mx.float32) -> Path:
    """The tiny checkpoint of a layout in `LAYOUTS`, as the hub has it."""
    family, undo, bits = {**LAYOUTS, **WITHOUT_CPU}[layout]
    with mock.patch.dict(tiny.CONFIGS, {**CONFIGS, **tiny.CONFIGS}):
        tiny.make(path, family, dtype=dtype, bits=bits if bits == "mxfp8" else None)
    weights = dict(mx.load(str(path / "model.safetensors")))
    weights = undo(weights)
    if bits in HUB_CONFIG:
        declare(path, quantization=None, quantization_config=HUB_CONFIG[bits])
    (path / "model.safetensors").unlink()
    tiny.write_in_order(path / "model.safetensors", weights)
    return path


def declare(path: Path, **entries: Any) -> None:
    """Change config.json; None removes an entry."""
    file = path / "config.json"
    config = {**json.loads(file.read_text()), **entries}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def blocks(weights: Weights) -> list[tuple[str, str]]:
    """Block and switch of every layer of experts."""
    found = [(m["block"], name[: m.start("projection")]) for name in sorted(weights) if (m := SWITCH.match(name))]
    assert found
    return found


def above(both: str, down: str, holder: str = ".experts", axis: int = 1) -> Callable[[Weights], Weights]:
    """gate above up in one tensor; `axis` -1: side by side, with rows and columns exchanged."""

    def undo(weights: Weights) -> Weights:
        for block, switch in blocks(weights):
            gate, up, last = (weights.pop(f"{switch}{name}_proj.weight") for name in ("gate", "up", "down"))
            if axis == -1:
                gate, up, last = (value.swapaxes(1, 2) for value in (gate, up, last))
            weights[f"{block}{holder}.{both}"] = mx.concatenate([gate, up], axis=axis)
            weights[f"{block}{holder}.{down}"] = last
        return weights

    return undo


def renamed(*pairs: tuple[str, str]) -> Callable[[Weights], Weights]:
    def undo(weights: Weights) -> Weights:
        for old, new in pairs:
            weights = {re.sub(old, new, name): value for name, value in weights.items()}
        return weights

    return undo


def each(holder: str, **spelling: str) -> Callable[[Weights], Weights]:
    """One tensor an expert, such as {block}.{holder}.3.w1.weight."""

    def undo(weights: Weights) -> Weights:
        for block, switch in blocks(weights):
            for name in [n for n in weights if n.startswith(switch)]:
                projection, _, tensor = name[len(switch) :].partition(".")
                for expert, value in enumerate(weights.pop(name)):
                    weights[f"{block}.{holder}.{expert}.{spelling.get(projection, projection)}.{tensor}"] = value
        return weights

    return undo


def folded(weights: Weights, both: bool = True) -> Weights:
    """The shared expert as one more expert; with `both`, gate above up."""
    for block, switch in blocks(weights):
        parts = {
            name: mx.concatenate([weights.pop(f"{switch}{name}.weight"),
                                  weights.pop(f"{block}.shared_experts.{name}.weight")[None]])
            for name in ("gate_proj", "up_proj", "down_proj")
        }  # fmt: skip
        if both:
            parts["gate_up_proj"] = mx.concatenate([parts.pop("gate_proj"), parts.pop("up_proj")], axis=1)
        weights |= {f"{switch}{name}.weight": value for name, value in parts.items()}
    return weights


def as_fp8_bytes(weights: Weights) -> Weights:
    """MXFP8: E4M3 bytes and one power of two for every 32 of them."""
    for name in [n for n in weights if n.endswith(".scales")]:
        weight = name.replace(".scales", ".weight")
        weights[f"{weight}_scale_inv"], weights[weight] = weights.pop(name), weights[weight].view(mx.uint8)
    return weights


def as_compressed_mxfp4(weights: Weights) -> Weights:
    """MXFP4 as compressed-tensors writes it: bytes of two codes, and bytes of powers of two."""
    for block, switch in blocks(weights):
        for projection, spelled in _W.items():
            codes, scales = mx.quantize(weights.pop(f"{switch}{projection}.weight"), 32, 4, mode="mxfp4")
            for expert, (code, scale) in enumerate(zip(codes, scales, strict=True)):
                name = f"{block.removesuffix('mlp')}block_sparse_moe.experts.{expert}.{spelled}."
                weights[f"{name}weight_packed"], weights[f"{name}weight_scale"] = code.view(mx.uint8), scale
    return weights


def as_fp8_experts(weights: Weights) -> Weights:
    """FP8 with one scale for each expert."""
    for name in [n for n in weights if re.search(r"\.experts\.(gate_up|down)_proj$", n)]:
        value = weights[name]
        scale = mx.abs(value).max(axis=(1, 2), keepdims=True) / 448
        weights[name], weights[f"{name}_scale_inv"] = mx.to_fp8(value / scale), scale
    return weights


def as_modelopt(weights: Weights) -> Weights:
    """NVFP4 as NVIDIA's ModelOpt writes it: gate above up, and one more scale for each expert's projection."""
    for _, switch in blocks(weights):
        gate, up, down = (weights.pop(f"{switch}{name}_proj.weight") for name in ("gate", "up", "down"))
        for name, value in (("gate_up_proj", mx.concatenate([gate, up], axis=1)), ("down_proj", down)):
            codes, scales = mx.quantize(value, 16, 4, mode="nvfp4")
            weights[switch + name], weights[f"{switch}{name}_weight_scale"] = codes.view(mx.uint8), scales
        experts = len(down)
        weights[f"{switch}gate_up_proj_weight_scale_2"] = (1 + mx.arange(2 * experts).reshape(experts, 2)) / 20000
        weights[f"{switch}down_proj_weight_scale_2"] = (1 + mx.arange(experts)) / 20000
    return weights


def _muse(weights: Weights) -> Weights:
    """The gates of the residual stream, which mlx-lm computes once."""
    for old, new in (("add_attn", "post_attention"), ("add_ffn", "post_feedforward")):
        for name in [n for n in weights if n.endswith(f"{old}_alpha")]:
            gate = mx.zeros_like(weights.pop(name))
            del weights[name.replace("_alpha", "_beta")]
            weights[name.replace(f"{old}_alpha", f"{new}_residual_gate.gate")] = gate
    return weights


def in_turn(*steps: Callable[[Weights], Weights]) -> Callable[[Weights], Weights]:
    def undo(weights: Weights) -> Weights:
        for step in steps:
            weights = step(weights)
        return weights

    return undo


_W = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
_GEMMA = renamed((r"^language_model\.model\.", "model.language_model."))
_QWEN_VL = renamed((r"^language_model\.model\.", "model.language_model."), (r"^language_model\.", ""))
_STEP = renamed(
    (r"\.mlp\.switch_mlp\.", ".moe."), (r"\.mlp\.gate\.gate\.", ".moe.gate."),
    (r"\.mlp\.gate\.router_bias", ".moe.router_bias"), (r"\.mlp\.share_expert\.", ".share_expert."),
)  # fmt: skip


def _norms_off_by_one(weights: Weights) -> Weights:
    return {name: value - 1 if name.endswith("norm.weight") else value for name, value in weights.items()}


# Layout -> family, what is done to the stacked checkpoint, its bits.
LAYOUTS: dict[str, tuple[str, Callable[[Weights], Weights], str | None]] = {
    "gemma4": ("gemma4", in_turn(above("gate_up_proj", "down_proj", holder=""), _GEMMA), None),
    "granitemoehybrid": (
        "granitemoehybrid", above("input_linear.weight", "output_linear.weight", holder=""), None
    ),
    "mistral4": ("mistral4", above("gate_up_proj", "down_proj"), None),
    "step3p5": ("step3p5", in_turn(_norms_off_by_one, _STEP), None),
    "phixtral": ("phixtral", each("mlp"), None),
    "minimax_m3_vl, folded": ("minimax_m3_vl", folded, None),
    "minimax_m3_vl, stacked and folded": ("minimax_m3_vl", functools.partial(folded, both=False), None),
    "minimax_m3_vl, mxfp8": ("minimax_m3_vl", in_turn(each("experts", **_W), as_fp8_bytes), "mxfp8"),
    "kimi_k3, mxfp4": ("kimi_k3", as_compressed_mxfp4, "compressed"),
    "llama4": ("llama4", above("gate_up_proj", "down_proj", axis=-1), None),
    "qwen3_vl_moe": ("qwen3_vl_moe", in_turn(above("gate_up_proj", "down_proj", axis=-1), _QWEN_VL), None),
    "mistral4, fp8": ("mistral4", in_turn(above("gate_up_proj", "down_proj"), as_fp8_experts), None),
}  # fmt: skip
# Families that compute on Metal alone: only their weights are compared.
WITHOUT_CPU: dict[str, tuple[str, Callable[[Weights], Weights], str | None]] = {
    "muse_spark": ("muse_spark", in_turn(above("gate_up_proj", "down_proj", holder=".experts"), _muse), None),
    "muse_spark, nvfp4": ("muse_spark", in_turn(as_modelopt, _muse), "modelopt"),
}
COMPUTED = ("mistral4, fp8", "muse_spark, nvfp4")
ONLY_TO_PACK = ("llama4", "qwen3_vl_moe", *COMPUTED)
NOT_TO_PACK = ("minimax_m3_vl, folded", "minimax_m3_vl, stacked and folded")


def outcome(path: Path) -> str:
    """What the engine does with a checkpoint: `in place`, `packed`, or the reason why it does neither."""
    for to_pack, word in ((False, "in place"), (True, "packed")):
        try:
            Checkpoint.open(path, to_pack=to_pack)
            return word
        except CheckpointError as e:
            reason = str(e)
    return reason
