"""Shapes: writes checkpoints of random weights in the shape of real models, for machines without the real ones.

Weights are 4-bit affine in groups of 64 (routers 8-bit), as mlx-lm converts such models. Codes are random, and the scales
keep activations of order 1. They are written layer by layer, in the layout of an MLX-converted checkpoint.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from engine.errors import HeadraceError
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
BITS, GROUP_SIZE = 4, 64


def make(shape: str, folder: Path) -> None:
    """Write a checkpoint of the given shape into `folder`. Raises `HeadraceError` if the folder is not empty."""
    if folder.exists() and any(folder.iterdir()):
        raise HeadraceError(f"{folder} is not empty; give a new folder")
    config = dict(SHAPES[shape])
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    overrides = _quantize(model)
    config["quantization"] = {"group_size": GROUP_SIZE, "bits": BITS, "mode": "affine", **overrides}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(to_json(config, indent=1))
    flat: Any = tree_flatten(model.parameters())
    entries = {name: (_dtype(value), tuple(value.shape)) for name, value in flat}
    layers: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, entry in sorted(entries.items()):
        parts = name.split(".")
        layers.setdefault(".".join(parts[:3]) if "layers" in parts else "rest", {})[name] = entry
    rng, begin, written = np.random.default_rng(0), time.perf_counter(), 0
    for number, tensors in enumerate(layers.values(), start=1):
        file = folder / f"model-{number:05d}-of-{len(layers):05d}.safetensors"
        written += _write(file, tensors, rng)
    seconds = time.perf_counter() - begin
    print(f"{shape}: {written / 1e9:.2f} GB in {len(layers)} files, {seconds:.0f} s, {folder}")


def _quantize(model: nn.Module) -> dict[str, Any]:
    """Quantize the module tree, whose weights stay lazy and are never computed; returns the routers' overrides."""
    overrides: dict[str, Any] = {}

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        if path.endswith(".gate"):
            overrides[path] = {"group_size": GROUP_SIZE, "bits": 8}
            return overrides[path]
        return True

    nn.quantize(model, GROUP_SIZE, BITS, class_predicate=predicate)
    return overrides


def _dtype(value: mx.array) -> str:
    return "U32" if value.dtype == mx.uint32 else "BF16"


def _write(file: Path, tensors: dict[str, tuple[str, tuple[int, ...]]], rng: np.random.Generator) -> int:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = int(np.prod(shape)) * (4 if dtype == "U32" else 2)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    encoded = to_json(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with open(file, "wb") as f:
        f.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, (dtype, shape) in tensors.items():
            f.write(_values(name, dtype, shape, tensors, rng).tobytes())
    return at


def _values(
    name: str, dtype: str, shape: tuple[int, ...], tensors: dict[str, tuple[str, tuple[int, ...]]], rng: np.random.Generator
) -> np.ndarray:
    """Random codes; scales for weights of variance 1 / columns; biases that centre them; norms of 1."""
    if dtype == "U32":
        return rng.integers(0, 1 << 32, shape, dtype=np.uint32)
    value = 1.0
    if name.endswith((".scales", ".biases")):
        packed = tensors[name.rpartition(".")[0] + ".weight"][1][-1]
        columns = shape[-1] * GROUP_SIZE
        levels = 1 << (packed * 32 // columns)
        scale = (12 / (levels**2 - 1) / columns) ** 0.5
        value = scale if name.endswith(".scales") else -scale * (levels - 1) / 2
    return np.full(shape, np.float32(value).view(np.uint32) >> 16, np.uint16)
