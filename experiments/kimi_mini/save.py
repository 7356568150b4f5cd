"""Write a checkpoint as Kimi's originals are written: one tensor an expert and projection, in bfloat16 shards.

The three tensors of an expert stand side by side in one file, so an expert is one contiguous range of bytes.
"""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

SHARD_BYTES = 15_000_000


def hf_tensors(
    parameters: dict[str, mx.array], biases: mx.array, config: dict[str, Any]
) -> list[list[tuple[str, mx.array]]]:
    """Tensors under the names of Kimi's originals, in groups that stay together in a file: the three of one expert."""
    groups, experts = [], []
    for name, weight in parameters.items():
        if ".switch_mlp.gate_proj." in name:
            for expert in range(config["n_routed_experts"]):
                own_name = name.replace("switch_mlp", f"experts.{expert}")
                stacked = [(part, name.replace("gate_proj", part)) for part in ("gate_proj", "up_proj", "down_proj")]
                experts.append([(own_name.replace("gate_proj", p), parameters[stack][expert]) for p, stack in stacked])
        elif ".switch_mlp." not in name:
            groups.append([(name, weight)])
    for row, bias in enumerate(biases):
        layer = config["first_k_dense_replace"] + row
        groups.insert(0, [(f"model.layers.{layer}.mlp.gate.e_score_correction_bias", bias)])
    return groups + experts


def save_checkpoint(folder: Path, parameters: dict[str, mx.array], biases: mx.array, config: dict[str, Any]) -> None:
    """bfloat16 shards of at most 15 MB (the correction bias in float32), their index and config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[tuple[str, mx.array]]] = [[]]
    size = 0
    for group in hf_tensors(parameters, biases, config):
        group_bytes = sum(array.size * (4 if "bias" in name else 2) for name, array in group)
        if size + group_bytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1] += group
        size += group_bytes
    weight_map: dict[str, str] = {}
    total = 0
    for number, tensors in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        total += write_safetensors(folder / file, tensors)
        weight_map |= {name: file for name, _ in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def write_safetensors(path: Path, tensors: list[tuple[str, mx.array]]) -> int:
    """Our own writer, because the order in the file matters: the tensors of one expert must be one byte range."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    blobs, at = [], 0
    for name, array in tensors:
        wide = "e_score_correction_bias" in name
        blob = np.array(array.astype(mx.float32) if wide else array.astype(mx.bfloat16).view(mx.uint16)).tobytes()
        header[name] = {
            "dtype": "F32" if wide else "BF16",
            "shape": list(array.shape),
            "data_offsets": [at, at + len(blob)],
        }
        at += len(blob)
        blobs.append(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))
    return at
