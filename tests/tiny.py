"""Tiny random checkpoints, made by mlx-lm's own classes, in the layouts that real ones have."""

from __future__ import annotations

import json
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
        write_in_order(path / "model.safetensors", one_tensor_an_expert(dict(tree_flatten(model.parameters())), family))
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


def one_tensor_an_expert(weights: dict[str, mx.array], family: str) -> dict[str, mx.array]:
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
