"""Tiny random checkpoints, made by mlx-lm's own classes, in the layouts that real ones have."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import quantize_model, save_config, save_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

CONFIGS = {
    "deepseek_v3": {
        "model_type": "deepseek_v3", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
        "moe_intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
        "n_shared_experts": 1, "n_routed_experts": 16, "routed_scaling_factor": 2.0, "kv_lora_rank": 32,
        "q_lora_rank": 32, "qk_rope_head_dim": 16, "v_head_dim": 16, "qk_nope_head_dim": 16, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 4, "first_k_dense_replace": 1, "rope_scaling": None,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 128,
        "moe_intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "num_experts": 12, "num_experts_per_tok": 3, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "norm_topk_prob": True, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
    "gpt_oss": {
        "model_type": "gpt_oss", "vocab_size": 256, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_local_experts": 8, "num_experts_per_tok": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "sliding_window": 128, "rope_theta": 10000, "rope_scaling": None,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip


def make(path: Path, family: str, *, bits: int | None = None, per_expert: bool = False, seed: int = 0) -> Path:
    """A checkpoint of `family` in `path`: bf16, or affine `bits` (group 32); stacked as MLX has it, or one tensor an
    expert as the hub's originals have it. Its tokenizer has one token a byte."""
    mx.random.seed(seed)
    config = dict(CONFIGS[family])
    arch = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model = arch.Model(arch.ModelArgs.from_dict(config))
    # Norms stay 1; the rest is scaled so that activations neither die out nor explode, and routing does not collapse.
    random = [(k, v if "norm" in k else mx.random.normal(v.shape) * (v.shape[-1] ** -0.5 if v.ndim > 1 else 0.1))
              for k, v in tree_flatten(model.parameters())]  # fmt: skip
    model.load_weights(random)
    model.set_dtype(mx.bfloat16)
    if bits:
        model, config = quantize_model(model, config, group_size=32, bits=bits)
    mx.eval(model.parameters())
    path.mkdir(parents=True, exist_ok=True)
    if per_expert:
        flat = {}
        for name, value in tree_flatten(model.parameters()):
            if ".switch_mlp." in name:
                for e in range(value.shape[0]):
                    flat[name.replace(".switch_mlp.", f".experts.{e}.")] = value[e]
            else:
                flat[name] = value
        write_in_order(path / "model.safetensors", flat)
    else:
        save_model(path, model, donate_model=False)
    save_config(config, path / "config.json")
    byte_tokenizer(path)
    return path


def write_in_order(path: Path, weights: dict[str, mx.array]) -> None:
    """A safetensors file ordered by name, as the hub's are, so that an expert's tensors touch; MLX's own order is random."""
    names = {mx.bfloat16: "BF16", mx.float32: "F32", mx.uint32: "U32"}
    header, data = {}, b""
    for name, value in sorted(weights.items()):
        content = np.array(value.view(mx.uint16) if value.dtype == mx.bfloat16 else value).tobytes()
        offsets = [len(data), len(data) + len(content)]
        header[name] = {"dtype": names[value.dtype], "shape": list(value.shape), "data_offsets": offsets}
        data += content
    encoded = json.dumps({"__metadata__": {"format": "mlx"}, **header}).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)


def byte_tokenizer(path: Path) -> None:
    """A tokenizer whose vocabulary is the 255 bytes that text has, and an end-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:255]
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<eos>"])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(path / "tokenizer.json"))
    described = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>", "model_max_length": 4096}
    (path / "tokenizer_config.json").write_text(json.dumps(described))
