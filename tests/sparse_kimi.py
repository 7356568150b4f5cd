"""The full shape of Kimi K2.5's original as sparse files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

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
