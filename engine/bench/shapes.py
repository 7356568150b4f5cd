"""Shapes: writes checkpoints of random weights in the shape of real models, for machines without the real ones.

The weights are those of `engine.packing.random_weights`. They are written layer by layer, in the layout of an MLX-converted
checkpoint.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError
from engine.packing.files import write_shards
from engine.packing.random_weights import by_layer, random_model
from engine.system.strict_json import to_json

# Sizes as published in each model's config.json.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3_30b_a3b": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "num_hidden_layers": 48, "intermediate_size": 6144,
        "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "moe_intermediate_size": 768, "rms_norm_eps": 1e-6, "vocab_size": 151936,
        "num_key_value_heads": 4, "head_dim": 128, "rope_theta": 1000000.0, "tie_word_embeddings": False,
        "max_position_embeddings": 40960, "norm_topk_prob": True,
    },
}  # fmt: skip


def make(shape: str, folder: Path) -> None:
    """Write a checkpoint of the given shape into `folder`. Raises `HeadraceError` if the folder is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise HeadraceError(f"{folder} is not empty; give a new folder")
    model = random_model(SHAPES[shape])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(model.config, indent=1))
    begin = time.perf_counter()
    checksums = write_shards(folder, by_layer(model.tensors), lambda name, entry: model.values(name))
    written = sum(entry.nbytes for entry in model.tensors.values())
    seconds = time.perf_counter() - begin
    print(f"{shape}: {written / 1e9:.2f} GB in {len(checksums)} files, {seconds:.0f} s, {folder}")
