"""Checkpoint: a model's folder, opened by its headers alone.

Experts are streamed in place, so the engine needs only the byte range of each expert's tensors. A checkpoint that disagrees
with itself or with config.json is refused. Opening a checkpoint of 1 T parameters (200,000 tensors) takes seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import CheckpointError, KnobError

from .built.arguments import with_top_k
from .built.model import BuiltModel, MisfitError, built_model
from .config import check_config, check_layers, check_quantization, model_name, read_config
from .dtypes import FP8, HALF, ITEM_BYTES
from .experts import ExpertLayer, layer_number
from .files.headers import read_headers
from .files.shards import check_complete, check_folder, shard_files
from .fingerprint import Blocks, blocks_of, fingerprint
from .layouts import expert_layers, is_kept
from .places.find import find_checkpoint
from .store.description import Description, layer_files, read_description
from .store.records import LayerRecords, open_records


@dataclass(frozen=True)
class Checkpoint:
    """A model's files and, per Mixture-of-Experts layer, the places of its routed experts."""

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    layers: tuple[ExpertLayer, ...]
    rest_bytes: int  # all tensors but the routed experts, without multi-token prediction and vision
    half_bytes: int  # the 16-bit floats among them
    header_digest: str  # of configuration, tensors' names, types and shapes, and the store's description
    tensors: int  # number in all files
    blocks: Blocks = field(repr=False)  # byte ranges that the fingerprint hashes
    store: Description | None = None  # None: the experts are not packed
    records: tuple[LayerRecords, ...] = field(default=(), repr=False)  # one per layer of a store
    followed: frozenset[str] = field(default=frozenset(), repr=False)  # experts' tensors that no name tells
    trust_code: bool = False  # whether a tokenizer that is code of the checkpoint's own may run

    @classmethod
    def open(cls, path: str | Path, *, to_pack: bool = False, trust_code: bool = False) -> Checkpoint:
        """Read config.json and all headers. Raises `CheckpointError` for a folder that is missing or truncated, a model that
        is not a Mixture of Experts, and experts that cannot be streamed in place. `to_pack` also opens layouts that can only
        be packed (`engine.packing.sources`); such a checkpoint can be used for nothing else."""
        path = find_checkpoint(path)
        check_folder(path)
        config = read_config(path)
        shards = files = shard_files(path)
        description = read_description(path)
        if description is not None:
            files += layer_files(path, description)
        tensors = read_headers(files)
        try:
            built = built_model(path, config)
        except MisfitError as e:
            if any("expert" in name or ".switch" in name for name in tensors):
                raise
            raise _without_experts(path, config) from e
        if not built.switches:
            raise _without_experts(path, config)
        blocks = blocks_of(tensors)
        described = json.dumps([config, description and description.digest, blocks.tensors], sort_keys=True)
        digest = hashlib.sha256(described.encode()).hexdigest()
        check_complete(path, config, shards, tensors, digest, () if description is None else description.replaced)
        kept = {name: entry for name, entry in tensors.items() if is_kept(name.partition(".experts.")[0], built.layers)}
        records: tuple[LayerRecords, ...] = ()
        followed: frozenset[str] = frozenset()
        if description is None:
            found = expert_layers(path, kept, {switch.experts for switch in built.switches}, to_pack=to_pack)
            layers, followed = found.layers, found.followed
            streamed = [*found.streamed]
        else:
            records = open_records(description, tensors, files)
            layers = tuple(of_layer.at_top() for of_layer in records)
            streamed = [(tensors[name].dtype, tensors[name].nbytes) for layer in description.own for name in layer.tensors]
        resident = [  # mlx-lm widens FP8 to bfloat16 on loading
            ("BF16", 2 * entry.nbytes) if entry.dtype == FP8 else (entry.dtype, entry.nbytes) for entry in kept.values()
        ]
        total, half = (
            sum(n for dtype, n in resident if dtype in kind) - sum(n for dtype, n in streamed if dtype in kind)
            for kind in (ITEM_BYTES, HALF)
        )
        checkpoint = cls(
            path,
            config,
            files,
            layers,
            total,
            half,
            digest,
            len(tensors),
            blocks,
            description,
            records,
            followed,
            trust_code,
        )
        checkpoint._check()
        return checkpoint

    def _check(self) -> None:
        if not self.layers:
            raise _without_experts(self.path, self.config)
        for layer in self.layers:
            if not layer.only_to_pack:
                if self.store is None:
                    layer.check()
                    check_quantization(self.path, layer, self.built, self.config)
                check_config(self.path, layer, self.built, self.config)
        check_layers(self.path, self.layers, self.built)

    @cached_property
    def built(self) -> BuiltModel:
        """What mlx-lm makes of the configuration: the model's numbers, its own defaults included."""
        return built_model(self.path, self.config)

    @property
    def levels(self) -> tuple[int, ...] | None:
        """Widths of the experts in a store, bits; None: they are not packed."""
        return None if self.store is None else self.store.levels

    @property
    def name(self) -> str:
        return model_name(self.path)

    @property
    def architecture(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration, which multi-modal models nest."""
        return {**self.config, **(self.config.get("text_config") or {})}

    @property
    def context_limit(self) -> int | None:
        """The longest context in tokens; None if the configuration names none."""
        limit = self.text_config.get("max_position_embeddings")
        return int(limit) if isinstance(limit, int) and limit > 0 else None

    @property
    def top_k(self) -> int:
        """Experts chosen for a token in each layer; the maximum where layers differ."""
        return self.built.top_k

    def with_top_k(self, count: int | None) -> Checkpoint:
        """The same model with at most `count` experts chosen for a token in each layer; None: unchanged.

        Raises `KnobError` if `count` is above the model's own number, and if no argument of the model gives that number.
        """
        if count is None or count == self.top_k:
            return self
        if count > self.top_k:
            raise KnobError(
                f"top_k={count} is above the {self.top_k} experts per token of {self.name}; use at most {self.top_k}"
            )
        config = with_top_k(self.path, self.config, count)
        if config is None:
            raise KnobError(
                f"top_k={count} is not possible for {self.architecture}: none of its arguments in mlx-lm gives that many "
                "experts per token; leave it unset"
            )
        return dataclasses.replace(self, config=config)

    @property
    def expert_bytes(self) -> int:
        """Bytes of the routed experts of all layers. Records that several layers share count for each of them."""
        return sum(layer.expert_bytes * layer.experts for layer in self.layers)

    @property
    def experts(self) -> int:
        """The number of routed experts, over all layers."""
        return sum(layer.experts for layer in self.layers)

    @property
    def shared_layers(self) -> int:
        """Layers of a store that have the records of another layer, and no file."""
        return 0 if self.store is None else len(self.store.layers) - len(self.store.own)

    def resident_bytes(self, *, widened: bool) -> int:
        """Bytes of all tensors but the routed experts; `widened`: with 16-bit floats stored in 32 bits."""
        return self.rest_bytes + self.half_bytes * widened

    @property
    def expert_bits(self) -> int:
        """Bits of the routed experts; the widest projection counts."""
        return max(layer.bits(projection) for layer in self.layers for projection in layer.projections)

    @cached_property
    def fingerprint(self) -> str:
        """Digest that identifies the model, independent of its folder (`engine.checkpoint.fingerprint`)."""
        return fingerprint(self.path, self.header_digest, self.files, self.blocks)

    @cached_property
    def bit_errors(self) -> np.ndarray | None:
        """float64 [layers, experts, projections, levels] of a store: squared error of the weights at each level, relative to
        the squares of the source's weights; NaN for experts that a layer does not have. None: not a store."""
        if self.levels is None:
            return None
        most = max(layer.experts for layer in self.layers)
        projections = max(len(layer.projections) for layer in self.layers)
        out = np.full((len(self.layers), most, projections, len(self.levels)), np.nan)
        for number, (layer, records) in enumerate(zip(self.layers, self.records, strict=True)):
            out[number, : layer.experts, : len(layer.projections)] = records.errors
        return out

    def find(self, block: str) -> ExpertLayer | None:
        """The layer of experts of the model's module `block`. Layers match by number, because mlx-lm renames the rest."""
        return next((layer for layer in self.layers if layer.number == layer_number(block)), None)


def _without_experts(path: Path, config: dict[str, Any]) -> CheckpointError:
    text = {**config, **config.get("text_config", {})}
    remedy = "; give a Mixture-of-Experts model, as converted by mlx-lm or with one tensor per expert"
    if not any(value for key, value in text.items() if "expert" in key or "moe" in key):
        remedy = (
            ": it is a dense model, with all weights in use at every token; run it with "
            f"mlx_lm.generate --model {path}, or give a Mixture-of-Experts model"
        )
    return CheckpointError(f"checkpoint {path} ({config['model_type']}) has no routed experts that can be streamed{remedy}")
