"""Verification: compares every byte of a packed store with its checksums."""

from __future__ import annotations

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import CheckpointError, first_line
from engine.native import core
from engine.system.strict_json import from_json

from .files import CHECKSUMS, COPY_BYTES, INDEX, Progress


def verify_store(path: str | Path, progress: Progress = lambda done, of: None) -> list[str]:
    """Read a whole store and compare its checksums. Returns one line for each damaged part."""
    store = Checkpoint.open(path)
    if store.store is None:
        raise CheckpointError(
            f"{store.path} is not a packed store and has no checksums; pack it first (python -m engine pack)"
        )
    shards = _shard_checksums(store)
    own = [number for number, layer in enumerate(store.store.layers) if layer.records_of is None]
    experts = sum(store.layers[number].expert_bytes * store.layers[number].experts for number in own)
    of = experts + sum((store.path / name).stat().st_size for name in shards)
    bad, done = [], 0
    for name, packed in shards.items():
        with open(store.path / name, "rb") as f:
            checksum = 0
            while part := f.read(COPY_BYTES):
                checksum = core.crc32(part, checksum)
                done += len(part)
                progress(done, of)
        if checksum != packed:
            bad.append(f"{name}: a resident tensor is damaged")
    for layer, records in ((store.layers[number], store.records[number]) for number in own):
        with open(records.file, "rb") as f, ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            for damage in pool.map(functools.partial(records.damage, f.fileno()), range(layer.experts)):
                bad += damage
                done += layer.expert_bytes
                progress(done, of)
    return bad


def _shard_checksums(store: Checkpoint) -> dict[str, int]:
    """CRC-32 of each shard of resident tensors, by file name."""
    index = store.path / INDEX
    try:
        found: dict[str, int] = from_json(index.read_text(encoding="utf-8"))["metadata"][CHECKSUMS]
        if set(found) != {file.name for file in store.path.glob("model*.safetensors")}:
            raise ValueError("it lists other files")
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise CheckpointError(
            f"{index} has no checksums of the resident tensors ({first_line(e)}); copy it again, or pack the model again"
        ) from e
    return found
