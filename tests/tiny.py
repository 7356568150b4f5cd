"""Tiny random checkpoints, made by mlx-lm's own classes, in the layouts that real ones have."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, quantize_model, save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIGS: dict[str, dict[str, Any]] = {
    "deepseek_v3": {
        "model_type": "deepseek_v3", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
        "moe_intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "n_shared_experts": 1, "n_routed_experts": 16, "routed_scaling_factor": 2.0, "kv_lora_rank": 32,
        "q_lora_rank": 32, "qk_rope_head_dim": 16, "v_head_dim": 16, "qk_nope_head_dim": 16, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 4, "first_k_dense_replace": 1, "rope_scaling": None,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
        "moe_intermediate_size": 32, "num_hidden_layers": 5, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_experts": 12, "num_experts_per_tok": 3, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
    "gpt_oss": {
        "model_type": "gpt_oss", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 5,
        "num_local_experts": 8, "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "sliding_window": 24, "rope_theta": 10000, "rope_scaling": None,
        "layer_types": ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"],
    },
    "mixtral": {
        "model_type": "mixtral", "vocab_size": 256, "hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
    "olmoe": {
        "model_type": "olmoe", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 5,
        "num_attention_heads": 4, "rms_norm_eps": 1e-5, "num_experts": 12, "num_experts_per_tok": 3,
    },
    "glm4_moe": {
        "model_type": "glm4_moe", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96,
        "max_position_embeddings": 512, "moe_intermediate_size": 32, "norm_topk_prob": True, "num_attention_heads": 4,
        "n_group": 1, "head_dim": 16, "topk_group": 1, "n_shared_experts": 1, "n_routed_experts": 12,
        "routed_scaling_factor": 1.0, "num_experts_per_tok": 3, "first_k_dense_replace": 1, "num_hidden_layers": 6,
        "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000, "rope_scaling": None, "use_qk_norm": True,
        "tie_word_embeddings": False, "attention_bias": False, "partial_rotary_factor": 0.5,
    },
    "minimax": {
        "model_type": "minimax_m2", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 32,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "num_experts_per_tok": 3,
        "num_local_experts": 12, "shared_intermediate_size": 0, "num_hidden_layers": 5, "rms_norm_eps": 1e-6,
        "rope_theta": 10000, "rotary_dim": 8, "head_dim": 16,
    },
    "granitemoe": {
        "model_type": "granitemoe", "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 5, "intermediate_size": 64,
        "num_attention_heads": 4, "rms_norm_eps": 1e-6, "logits_scaling": 4.0, "attention_multiplier": 0.1,
        "embedding_multiplier": 2.0, "residual_multiplier": 0.5, "max_position_embeddings": 512,
        "num_key_value_heads": 2, "attention_bias": False, "rope_theta": 10000.0, "num_local_experts": 8,
        "num_experts_per_tok": 3,
    },
    "lfm2_moe": {
        "model_type": "lfm2_moe", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 32, "num_hidden_layers": 6, "num_experts": 8, "num_experts_per_tok": 2,
        "norm_topk_prob": True, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "use_expert_bias": True, "num_dense_layers": 1, "norm_eps": 1e-5, "conv_bias": False, "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention"] * 3,
    },
    "qwen3_next": {
        "model_type": "qwen3_next", "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 5,
        "intermediate_size": 96, "num_attention_heads": 4, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "num_experts": 12,
        "num_experts_per_tok": 3, "decoder_sparse_step": 1, "shared_expert_intermediate_size": 32,
        "mlp_only_layers": [], "moe_intermediate_size": 32, "rms_norm_eps": 1e-6, "num_key_value_heads": 2,
        "rope_theta": 10000, "partial_rotary_factor": 0.5, "max_position_embeddings": 512, "head_dim": 16,
        "norm_topk_prob": True,
    },
    "deepseek_v2": {
        "model_type": "deepseek_v2", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 4,
        "n_shared_experts": 1, "n_routed_experts": 12, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16,
        "v_head_dim": 16, "qk_nope_head_dim": 16, "topk_method": "greedy", "num_experts_per_tok": 3,
        "rope_scaling": {"type": "yarn", "factor": 4, "mscale": 1, "mscale_all_dim": 1},
        "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    },
    "nemotron_h": {
        "model_type": "nemotron_h", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 64,
        "max_position_embeddings": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": False,
        "mamba_num_heads": 4, "mamba_head_dim": 16, "mamba_proj_bias": False, "ssm_state_size": 16, "conv_kernel": 4,
        "n_groups": 1, "mlp_bias": False, "layer_norm_epsilon": 1e-5, "use_bias": False, "use_conv_bias": True,
        "hybrid_override_pattern": list("ME*EMEEME"), "head_dim": 16, "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32, "n_group": 1, "n_routed_experts": 8, "n_shared_experts": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
    },
}  # fmt: skip
# deepseek_v3 itself is small, for the other tests; with the same code kimi_k2 has the five layers of experts of the others.
CONFIGS["kimi_k2"] = {**CONFIGS["deepseek_v3"], "model_type": "kimi_k2", "num_hidden_layers": 6}
CONFIGS["kimi_k25"] = {"model_type": "kimi_k25", "text_config": CONFIGS["kimi_k2"]}
CONFIGS["glm4_moe_lite"] = {
    **CONFIGS["kimi_k2"], "model_type": "glm4_moe_lite", "rope_theta": 10000.0, "max_position_embeddings": 512,
    "num_nextn_predict_layers": 0,
}  # fmt: skip
CONFIGS["qwen3_5_moe"] = {
    "model_type": "qwen3_5_moe",
    "text_config": {
        **CONFIGS["qwen3_next"], "model_type": "qwen3_5_moe_text", "full_attention_interval": 4,
        "rope_parameters": {"type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.5,
                            "mrope_section": [2, 1, 1]},
    },
}  # fmt: skip

# How originals on the hub spell an expert's projections, where they differ from mlx-lm.
SPELLING = {
    "nemotron_h": {"fc1": "up_proj", "fc2": "down_proj"},
    **{f: {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"} for f in ("mixtral", "minimax", "lfm2_moe")},
}
# Where originals keep a layer for multi-token prediction, which mlx-lm drops.
PREDICTION = {
    "deepseek_v3": "model.layers.61.", "glm4_moe": "model.layers.6.", "glm4_moe_lite": "model.layers.6.",
    "qwen3_next": "mtp.layers.0.", "qwen3_5_moe": "mtp.layers.0.", "nemotron_h": "mtp.layers.0.",
}  # fmt: skip
ORIGINALS = ("deepseek_v2", "deepseek_v3", "glm4_moe", "glm4_moe_lite", "granitemoe", "kimi_k2", "kimi_k25", "lfm2_moe",
             "minimax", "mixtral", "nemotron_h", "olmoe", "qwen3_5_moe", "qwen3_moe", "qwen3_next")  # fmt: skip


def make(
    path: Path, family: str, *, bits: int | str | None = None, per_expert: bool = False, group_size: int = 32, seed: int = 0,
    sizes: dict[str, int] | None = None, dtype: mx.Dtype = mx.bfloat16, config: dict[str, Any] | None = None,
) -> Path:  # fmt: skip
    """A checkpoint of `family` in `path`: bf16, affine `bits`, a mode such as "mxfp4", or "mixed" (widths that differ by
    layer and projection); stacked as MLX has it, or one tensor an expert as the hub's originals have it. Its tokenizer
    has one token a byte. `sizes` replace those of the family's configuration, `config` the whole of it."""
    mx.random.seed(seed)
    config = {**(config or CONFIGS[family]), **(sizes or {})}
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    # Norms stay 1; the rest is scaled so that activations neither die out nor explode, and routing does not collapse.
    random = [(k, v if "norm" in k or not mx.issubdtype(v.dtype, mx.floating)
               else mx.random.normal(v.shape) * (v.shape[-1] ** -0.5 if v.ndim > 1 else 0.1))
              for k, v in tree_flatten(model.parameters())]  # fmt: skip
    model.load_weights(random)
    model.set_dtype(dtype)
    if bits == "mixed":
        model, config = quantize_model(model, config, group_size=group_size, bits=4, quant_predicate=_mixed)
    elif isinstance(bits, str):
        width, group = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}[bits]
        model, config = quantize_model(model, config, group_size=group, bits=width, mode=bits)
    elif bits:
        model, config = quantize_model(model, config, group_size=group_size, bits=bits)
    mx.eval(model.parameters())
    path.mkdir(parents=True, exist_ok=True)
    if per_expert:
        write_in_order(path / "model.safetensors", _one_tensor_an_expert(dict(tree_flatten(model.parameters())), family))
    else:
        save_model(path, model, donate_model=False)
    save_config(config, path / "config.json")
    byte_tokenizer(path)
    return path


def _mixed(path: str, module: Any) -> bool | dict[str, Any]:
    if not hasattr(module, "to_quantized") or "switch" not in path:
        return False
    if ".1." in path and "up_proj" in path:
        return False
    bits = 6 if "down_proj" in path else 3 if ".2." in path else 4
    return {"group_size": 32, "bits": bits, "mode": "affine"}


def make_original(path: Path, family: str, sizes: dict[str, int] | None = None) -> Path:
    """The checkpoint that `make` makes in bf16, as originals on the hub have it: what mlx-lm's `sanitize` does is undone,
    and what it drops (multi-token prediction, vision) is there."""
    make(path, family, sizes=sizes)
    weights = dict(mx.load(str(path / "model.safetensors")))
    if family in ("granitemoe", "qwen3_5_moe"):
        weights = _gate_above_up(weights, *(("input_linear.weight", "output_linear.weight") if family == "granitemoe"
                                            else ("experts.gate_up_proj", "experts.down_proj")))  # fmt: skip
    weights = _one_tensor_an_expert(weights, family)
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


def _one_tensor_an_expert(weights: dict[str, mx.array], family: str) -> dict[str, mx.array]:
    out = {}
    for name, value in weights.items():
        block, stacked, rest = name.partition(".switch_mlp.")
        projection, _, tensor = rest.partition(".")
        if not stacked:
            out[name] = value
        for expert in range(value.shape[0] if stacked else 0):
            spelled = SPELLING.get(family, {}).get(projection, projection)
            out[f"{block}.experts.{expert}.{spelled}.{tensor}"] = value[expert]
    return out


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


def write_in_order(path: Path, weights: dict[str, mx.array]) -> None:
    """A safetensors file ordered by name, as the hub's are, so that an expert's tensors touch; MLX's own order is random.
    Bytes that have block scales are FP8."""
    names = {mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint32: "U32", mx.int32: "I32", mx.uint8: "U8"}
    header, data = {}, bytearray()
    for name, value in sorted(weights.items()):
        content = np.array(value.view(mx.uint16) if value.dtype == mx.bfloat16 else value).tobytes()
        offsets = [len(data), len(data) + len(content)]
        fp8 = f"{name}_scale_inv" in weights
        header[name] = {
            "dtype": "F8_E4M3" if fp8 else names[value.dtype],
            "shape": list(value.shape),
            "data_offsets": offsets,
        }
        data += content
    encoded = json.dumps({"__metadata__": {"format": "mlx"}, **header}).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(data))
    path.with_name("model.safetensors.index.json").unlink(missing_ok=True)  # it would list what was there before


def byte_tokenizer(path: Path) -> None:
    """A tokenizer whose vocabulary is the 255 bytes that text has, and an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:255]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<eos>"])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "model_max_length": 4096}
    (path / "tokenizer_config.json").write_text(json.dumps(described))


# Its turns end with the end-of-text token, as those of real templates do.
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def add_chat_template(path: Path, template: str = CHAT) -> Path:
    """Give a tiny checkpoint a chat template."""
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    return path


KIMI_K25 = {
    "model_type": "kimi_k25",
    "text_config": {
        "model_type": "kimi_k2", "vocab_size": 163840, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 64, "num_key_value_heads": 64,
        "n_shared_experts": 1, "n_routed_experts": 384, "routed_scaling_factor": 2.827, "kv_lora_rank": 512,
        "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 8, "moe_layer_freq": 1, "first_k_dense_replace": 1,
        "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "rope_theta": 50000.0, "rope_scaling": None,
        "quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"},
    },
}  # fmt: skip


def make_sparse_kimi(path: Path) -> Path:
    """The full shape of Kimi K2.5's original, one shard a layer: 208,215 tensors and 594 GB, all of it holes."""
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(KIMI_K25))
    index = {}
    for layer in range(61):
        header, at = {}, 0
        for name, dtype, shape in _kimi_tensors(layer):
            nbytes = math.prod(shape) * {"BF16": 2, "F32": 4, "I32": 4}[dtype]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + nbytes]}
            at += nbytes
        file = path / f"model-{layer + 1:05}-of-00061.safetensors"
        encoded = json.dumps(header).encode()
        with open(file, "wb") as f:
            f.write(len(encoded).to_bytes(8, "little") + encoded)
            f.truncate(8 + len(encoded) + at)
        index.update(dict.fromkeys(header, file.name))
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return path


def _kimi_tensors(layer: int) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of every tensor of one layer; the embeddings come with the first, the head with the last."""
    c = KIMI_K25["text_config"]
    hidden, heads, rope, latent = c["hidden_size"], c["num_attention_heads"], c["qk_rope_head_dim"], c["kv_lora_rank"]
    block = f"language_model.model.layers.{layer}."
    if layer == 0:
        yield "language_model.model.embed_tokens.weight", "BF16", [c["vocab_size"], hidden]
    for name, shape in (
        ("input_layernorm", [hidden]), ("post_attention_layernorm", [hidden]),
        ("self_attn.q_a_proj", [c["q_lora_rank"], hidden]), ("self_attn.q_a_layernorm", [c["q_lora_rank"]]),
        ("self_attn.q_b_proj", [heads * (c["qk_nope_head_dim"] + rope), c["q_lora_rank"]]),
        ("self_attn.kv_a_proj_with_mqa", [latent + rope, hidden]), ("self_attn.kv_a_layernorm", [latent]),
        ("self_attn.kv_b_proj", [heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), latent]),
        ("self_attn.o_proj", [hidden, heads * c["v_head_dim"]]),
    ):  # fmt: skip
        yield f"{block}{name}.weight", "BF16", shape
    dense = layer < c["first_k_dense_replace"]
    width = c["intermediate_size"] if dense else c["moe_intermediate_size"]
    shapes = {"gate_proj": [width, hidden], "up_proj": [width, hidden], "down_proj": [hidden, width]}
    for projection, (rows, columns) in shapes.items():
        yield f"{block}mlp.{'' if dense else 'shared_experts.'}{projection}.weight", "BF16", [rows, columns]
        for expert in range(0 if dense else c["n_routed_experts"]):
            name = f"{block}mlp.experts.{expert}.{projection}.weight"
            yield f"{name}_packed", "I32", [rows, columns // 8]
            yield f"{name}_scale", "BF16", [rows, columns // 32]
            yield f"{name}_shape", "I32", [2]
    if not dense:
        yield f"{block}mlp.gate.weight", "BF16", [c["n_routed_experts"], hidden]
        yield f"{block}mlp.gate.e_score_correction_bias", "F32", [c["n_routed_experts"]]
    if layer == c["num_hidden_layers"] - 1:
        yield "language_model.model.norm.weight", "BF16", [hidden]
        yield "language_model.lm_head.weight", "BF16", [c["vocab_size"], hidden]
