"""Checkpoints in several shards: splits a tiny one, and writes an index as the hub's repositories have it."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx

from engine.checkpoint.files.shards import INDEX


def split(path: Path, target: Path, count: int = 3) -> list[str]:
    """A copy of a checkpoint with its tensors in `count` shards, each with an index entry; returns the shards' names."""
    target.mkdir(parents=True)
    for file in path.iterdir():
        if file.suffix != ".safetensors" and file.name != INDEX:
            (target / file.name).write_bytes(file.read_bytes())
    weights = {name: value for file in sorted(path.glob("model*.safetensors")) for name, value in mx.load(str(file)).items()}
    names, shards, shard_of = sorted(weights), [], {}
    for number in range(count):
        part = names[number * len(names) // count : (number + 1) * len(names) // count]
        shards.append(f"model-{number + 1:05d}-of-{count:05d}.safetensors")
        mx.save_safetensors(str(target / shards[-1]), {name: weights[name] for name in part}, metadata={"format": "mlx"})
        shard_of |= dict.fromkeys(part, shards[-1])
    write_index(target, shard_of)
    return shards


def write_index(path: Path, shard_of: object) -> None:
    """Write an index with these entries."""
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))


def read_index(path: Path) -> dict[str, str]:
    """The entries of a checkpoint's index."""
    return dict(json.loads((path / INDEX).read_text())["weight_map"])
