"""Families: the model files of mlx-lm that compute experts with a switch, and a tiny configuration for each of them.

The files are found in mlx-lm's source, so a new version's new file needs a configuration here before the tests pass.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import inspect
from pathlib import Path
from typing import Any

import mlx_lm.models
from mlx_lm.utils import MODEL_ARCHITECTURE_REMAPPING, MODEL_REMAPPING
from tiny import CONFIGS

SWITCHES = ("SwitchGLU", "SwitchMLP")

# Sizes under all names that model files use; a configuration has those of them that its file's arguments know.
SIZES: dict[str, Any] = {
    "vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False, "attention_bias": False,
    "num_experts": 8, "n_routed_experts": 8, "num_local_experts": 8, "moe_num_experts": 8, "num_experts_per_tok": 2,
    "num_experts_per_token": 2, "moe_topk": 2, "n_shared_experts": 1, "num_shared_experts": 1, "first_k_dense_replace": 1,
    "norm_topk_prob": True, "routed_scaling_factor": 1.5, "n_group": 1, "topk_group": 1, "num_expert_group": 1,
    "kv_lora_rank": 32, "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16,
    "shared_expert_intermediate_size": 32, "moe_shared_expert_intermediate_size": 32, "scoring_func": "sigmoid",
    "topk_method": "noaux_tc", "moe_layer_freq": 1, "sliding_window": 16, "use_qk_norm": True,
    "layer_types": ["sliding_attention", "full_attention"] * 2, "partial_rotary_factor": 0.5,
}  # fmt: skip
LINEAR = {"num_heads": 4, "head_dim": 16, "kda_layers": [1, 3], "full_attn_layers": [2, 4], "short_conv_kernel_size": 4,
          "gate_lower_bound": -5.0, "use_full_rank_gate": True}  # fmt: skip
LONGCAT = {
    "attention_method": "MLA", "zero_expert_type": "identity", "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32,
    "zero_expert_num": 2, "num_layers": 3, "mla_scale_q_lora": True, "mla_scale_kv_lora": True,
}  # fmt: skip
GEMMA4 = {
    "enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
    "num_global_key_value_heads": 1, "global_head_dim": 16, "intermediate_size": 64,
}  # fmt: skip

MISTRAL4 = {"rope_theta": 10000.0, "type": "yarn", "factor": 4.0, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 32, "llama_4_scaling_beta": 0.1}  # fmt: skip
QWEN3_5 = {**CONFIGS["qwen3_5_moe"]["text_config"], "num_hidden_layers": 3, "full_attention_interval": 2}

# What a file's configuration has beside the sizes, or in their place.
OWN: dict[str, dict[str, Any]] = {
    "Klear": {"mlp_only_layers": [0], "decoder_sparse_step": 1},
    "afmoe": {"num_dense_layers": 1},
    "bailing_hybrid": {"layer_group_size": 2, "group_norm_size": 4},
    "bailing_moe": {},
    "bailing_moe_linear": {"layer_group_size": 2, "group_norm_size": 1, "num_key_value_heads": 4},
    "bailing_moe_v3": {"architectures": ["BailingMoeV3ForCausalLM"], "model_type": "bailing_hybrid", "layer_group_size": 2},
    "deepseek": {},
    "deepseek_v32": {"index_head_dim": 32, "index_n_heads": 4, "index_topk": 8, "num_key_value_heads": 4},
    "deepseek_v41": {
        "head_dim": 32, "qk_rope_head_dim": 8, "o_groups": 2, "o_lora_rank": 16, "scoring_func": "sqrtsoftplus",
        "rms_norm_eps": 1e-20, "compress_ratios": [0, 2, 2, 1], "kv_source_layer_ids": [1, 3],
        "index_source_layer_ids": [1, 3], "index_n_heads": 4, "index_head_dim": 32, "index_topk": 3,
    },
    "dots1": {},
    "ernie4_5_moe": {"use_bias": False, "moe_k": 2, "moe_layer_start_index": 1, "moe_num_shared_experts": 1},
    "exaone_moe": {"is_moe_layer": [False, True, True, True]},
    "gemma4": {"vocab_size": 256, "text_config": {**GEMMA4, "model_type": "gemma4_text"}},
    "gemma4_text": GEMMA4,
    "glm_moe_dsa": {"index_head_dim": 32, "index_n_heads": 4, "index_topk": 8, "num_key_value_heads": 4,
                    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "granitemoehybrid": {
        "embedding_multiplier": 2.0, "attention_multiplier": 0.1, "logits_scaling": 4.0, "residual_multiplier": 0.5,
        "layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 32, "mamba_n_heads": 4, "mamba_d_head": 16,
        "mamba_proj_bias": False, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_groups": 1, "mamba_conv_bias": True,
    },
    "hunyuan": {
        "moe_topk": [2, 1, 2, 3], "moe_intermediate_size": [32, 32, 32, 64],
        "num_shared_expert": [1, 1, 1, 2], "use_mixed_mlp_moe": True, "use_cla": True, "cla_share_factor": 2,
        "rope_scaling": {"alpha": 1000.0, "factor": 1.0, "type": "dynamic"},
    },
    "jamba": {
        "num_hidden_layers": 6, "attn_layer_offset": 1, "attn_layer_period": 3, "expert_layer_offset": 1,
        "expert_layer_period": 2, "mamba_d_conv": 4, "mamba_d_state": 8, "mamba_expand": 2,
    },
    "kimi_k3": {"text_config": {
        "model_type": "kimi_linear", "linear_attn_config": LINEAR, "activation_situ_beta": 4.0,
        "activation_situ_linear_beta": 25.0, "attn_res_block_size": 2, "mla_use_output_gate": True,
        "routed_expert_hidden_size": 32, "latent_moe_use_norm": True,
    }},
    "kimi_linear": {"linear_attn_config": LINEAR, "model_max_length": 512},
    "kimi_vl": {"text_config": {"model_type": "deepseek_v3", "num_key_value_heads": 4}},
    "laguna": {"shared_expert_intermediate_size": 32},
    "llama4": {"text_config": {
        "model_type": "llama4_text", "attention_chunk_size": 16, "interleave_moe_layer_step": 1, "intermediate_size": 32,
        "intermediate_size_mlp": 96, "num_experts_per_tok": 1, "rope_scaling": None,
    }},
    "longcat_flash": LONGCAT,
    "longcat_flash_ngram": {**LONGCAT, "ngram_vocab_size_ratio": 4},
    "mellum": {"rope_parameters": {kind: {"rope_theta": 10000.0, "rope_type": "default"}
                                   for kind in ("sliding_attention", "full_attention")}},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [0, 1, 0, 1], "moe_layer_freq": [0, 1, 1, 1], "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False, "sliding_window_size": 16, "layernorm_epsilon": 1e-5,
        "swa_rope_theta": 10000.0, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16,
        "swa_v_head_dim": 16, "attention_value_scale": 0.7,
    },
    "minimax_m3_vl": {"text_config": {
        "model_type": "minimax_m3", "intermediate_size": 32, "dense_intermediate_size": 96, "shared_intermediate_size": 32,
        "rotary_dim": 8, "moe_layer_freq": [0, 1, 1, 1], "layer_types": None,
    }},
    "mistral3": {"text_config": {"model_type": "mistral4", "rope_parameters": MISTRAL4}},
    "mistral4": {"rope_parameters": MISTRAL4},
    "muse_spark": {"text_config": {
        "post_norm_eps": 1e-8, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "layer_rope_theta": [10000.0] * 3 + [0], "final_logit_softcapping": 20.0, "output_multiplier": 0.7,
        "moe_hidden_size": 32, "num_shared_experts": 0,
    }},
    "phimoe": {"rope_scaling": {
        "type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8, "short_mscale": 1.2, "long_mscale": 1.2,
        "original_max_position_embeddings": 256,
    }},
    "phixtral": {"num_vocab": 256, "model_dim": 64, "num_heads": 4, "num_layers": 3, "rotary_dim": 8},
    "prism_hadamard_qwen35": {
        "schema_version": 1, "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [{"path": "lm_head", "embedding": False, "dtype": "float16", "block": 0}],
        "text_config": {**QWEN3_5, "hidden_size": 128},
    },
    "qwen2_moe": {},
    "qwen3_5": {"text_config": QWEN3_5},
    "qwen3_vl_moe": {"text_config": {
        "model_type": "qwen3_vl_moe_text", "decoder_sparse_step": 1, "mlp_only_layers": [],
    }},
    "solar_open": {},
    "step3p5": {"num_attention_groups": 2, "moe_top_k": 2, "share_expert_dim": 32, "moe_layers_enum": "1,2,3",
                "rope_theta": [10000.0] * 4, "partial_rotary_factors": [0.5] * 4,
                "attention_other_setting": {"num_attention_heads": 8, "num_attention_groups": 2}},
}  # fmt: skip
# Text arguments that are in another class than `TextArgs` of the same file.
TEXT_FILE = {"gemma4": "gemma4_text", "mistral3": "mistral4", "qwen3_vl_moe": "qwen3_moe"}
# Model files for which mlx-lm has no switch although the model has experts.
WITHOUT_SWITCH = {"dbrx": "mlx-lm computes its experts one by one, without a switch; they stay in memory in mlx-lm itself"}


def configuration(file: str) -> dict[str, Any]:
    """The tiny configuration of a model file, as its config.json."""
    known = next((c for c in CONFIGS.values() if file_of(c) == file), None)
    if known is not None:
        return known
    own = OWN[file]
    module = importlib.import_module(f"mlx_lm.models.{file}")
    if "text_config" not in own:
        return {"model_type": file, **_sizes(module.ModelArgs, own)}
    text = own["text_config"]
    holder = importlib.import_module(f"mlx_lm.models.{TEXT_FILE.get(file, file)}")
    args = holder.ModelArgs if file in TEXT_FILE else getattr(holder, "TextArgs", None)
    inner = _sizes(args, text) if args is not None else text
    return {"model_type": file, **own, "text_config": inner}


def _sizes(args: type, own: dict[str, Any]) -> dict[str, Any]:
    fields = [f.name for f in dataclasses.fields(args)] if dataclasses.is_dataclass(args) else [
        *inspect.signature(args).parameters
    ]  # fmt: skip
    return {**{name: value for name, value in SIZES.items() if name in fields}, **own}


def file_of(config: dict[str, Any]) -> str:
    """The model file that mlx-lm opens a configuration with."""
    kind = config["model_type"]
    for architecture in config.get("architectures", ()):
        kind = MODEL_ARCHITECTURE_REMAPPING.get((kind, architecture), kind)
    return str(MODEL_REMAPPING.get(kind, kind))


def model_types(file: str) -> list[str]:
    """The model types that a model file opens, its own name first."""
    return [file, *sorted(kind for kind, other in MODEL_REMAPPING.items() if other == file)]


@functools.cache
def model_files(folder: Path = Path(mlx_lm.models.__path__[0])) -> tuple[str, ...]:
    """The model files that build a switch, or a model of another file that does, in the order of their names."""
    imports: dict[str, set[str]] = {}
    builds: set[str] = set()
    models: set[str] = set()
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Call)]
        near = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 1]
        names = {alias.name for node in near for alias in node.names}
        imports[path.stem] = {n.module for n in near if n.module} | names
        called = {n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        if called & set(SWITCHES) and path.stem != "switch_layers":
            builds.add(path.stem)
        if "Model" in names | {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
            models.add(path.stem)

    def reached(file: str, seen: frozenset[str] = frozenset()) -> bool:
        near = imports.get(file, set()) - seen
        return file in builds or any(reached(other, seen | near) for other in near)

    return tuple(sorted((file for file in models if reached(file)), key=str.lower))
