"""Checkpoint: where every routed expert lies in the safetensors files, read from the headers alone.

Experts are streamed in place, so all that is needed is the byte range of each expert's tensors. Two layouts are known:
stacked, as MLX-converted checkpoints have it (`...switch_mlp.gate_proj.weight` of shape [experts, out, in], an expert is
one slice), and one tensor an expert, as originals on the hub have it (`...experts.7.gate_proj.weight`). Nothing here
imports MLX; opening the headers of a checkpoint of 1 T parameters (200,000 tensors) is a matter of seconds.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, JSON header, data).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "U16": 2, "I16": 2, "U8": 1, "I8": 1}
FLOATS = ("F32", "F16", "BF16")
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
COMPRESSED = {"weight_packed": "weight", "weight_scale": "scales"}  # compressed-tensors INT4, as Kimi K2.5's original
_NAME = (
    r"\.(?P<projection>gate_proj|up_proj|down_proj|w1|w2|w3|fc1|fc2)"
    r"\.(?P<tensor>weight|scales|biases|bias|weight_packed|weight_scale|weight_scale_inv|global_scale)$"
)
PER_EXPERT = re.compile(r"^(?P<block>.+)\.experts\.(?P<expert>\d+)" + _NAME)
STACKED = re.compile(r"^(?P<block>.+)\.(?:switch_mlp|switch_glu|experts)" + _NAME)
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "top_k")
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer")


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor of every expert of a layer, e.g. `gate_proj.weight`: where each expert's part of it lies."""

    projection: str
    tensor: str
    dtype: str  # as safetensors names it
    shape: tuple[int, ...]  # of one expert
    file: np.ndarray  # [experts] index into Checkpoint.files
    offset: np.ndarray  # [experts] byte offset in that file

    @property
    def name(self) -> str:
        return f"{self.projection}.{self.tensor}"

    @property
    def nbytes(self) -> int:
        """Bytes of one expert's part."""
        return int(np.prod(self.shape)) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one layer. `block` is the module that holds them, e.g. `model.layers.3.mlp`."""

    block: str
    tensors: tuple[ExpertTensor, ...]
    symmetric: bool = False  # 4-bit codes around 8: the zero point is not stored, biases are -8 times the scales

    @property
    def experts(self) -> int:
        return len(self.tensors[0].file)

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert on disk, all projections."""
        return sum(t.nbytes for t in self.tensors)

    @property
    def projections(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(t.projection for t in self.tensors))

    def tensor(self, name: str) -> ExpertTensor | None:
        """The tensor of that name (`gate_proj.scales`), or None."""
        return next((t for t in self.tensors if t.name == name), None)

    def input_dims(self, projection: str) -> int:
        """Columns of a projection's weight before packing: what goes in is what the other side puts out."""
        other = {"down_proj": "up_proj", "fc2": "fc1", "fc1": "fc2"}.get(projection, "down_proj")
        weight = self.tensor(f"{other}.weight")
        if weight is None:
            raise CheckpointError(f"{self.block} has {projection} but no {other}; copy the missing shards")
        return weight.shape[0]

    def quantization(self, projection: str) -> dict[str, Any] | None:
        """group_size, bits and mode of a projection, or None if it is not quantized; the shapes determine them."""
        weight, scales = self.tensor(f"{projection}.weight"), self.tensor(f"{projection}.scales")
        if weight is None or scales is None:
            return None
        columns = self.input_dims(projection)
        bits, group_size = weight.shape[-1] * 32 // columns, columns // scales.shape[-1]
        mode = "affine" if scales.dtype in FLOATS else "nvfp4" if group_size == 16 else f"mxfp{bits}"
        return {"group_size": group_size, "bits": bits, "mode": mode}

    def bits(self, projection: str) -> int:
        """Bits of a projection's weight; 16 for any float type that is not quantized."""
        quantization = self.quantization(projection)
        return 16 if quantization is None else int(quantization["bits"])


@dataclass(frozen=True)
class Checkpoint:
    """A model's files and, per Mixture-of-Experts layer, where its routed experts lie."""

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    layers: tuple[ExpertLayer, ...]
    total_bytes: int
    header_digest: str

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Read config.json and all headers. Raises `CheckpointError` for a folder that is missing, truncated, not a
        Mixture of Experts, or whose experts lie in a layout that cannot be streamed in place."""
        path = Path(path).expanduser()
        if not path.is_dir():
            raise CheckpointError(f"checkpoint {path} is not a folder; give the folder that holds config.json")
        config = _config(path)
        files = tuple(sorted(path.glob("model*.safetensors")))
        if not files:
            raise CheckpointError(f"checkpoint {path} has no model*.safetensors; copy the model's shards there")
        _shards_present(path, files)
        headers = [_header(file) for file in files]
        total = sum(end - begin for header, _ in headers for begin, end in (h["data_offsets"] for h in header.values()))
        digest = hashlib.sha256(json.dumps([config, [h for h, _ in headers]], sort_keys=True).encode()).hexdigest()
        checkpoint = cls(path, config, files, tuple(_expert_layers(path, config, headers)), total, digest)
        if not checkpoint.layers:
            raise CheckpointError(
                f"checkpoint {path} ({checkpoint.architecture}) has no routed experts that can be streamed; "
                "give a Mixture-of-Experts model, as converted by mlx-lm or with one tensor an expert"
            )
        return checkpoint

    @property
    def architecture(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration (wrappers nest it)."""
        return {**self.config, **self.config.get("text_config", {})}

    @property
    def top_k(self) -> int:
        """Experts chosen for a token in each layer."""
        for key in TOP_K_KEYS:
            if self.text_config.get(key):
                return int(self.text_config[key])
        raise CheckpointError(f"{self.path}/config.json does not say how many experts a token uses; add {TOP_K_KEYS[0]}")

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts on disk."""
        return sum(layer.expert_bytes * layer.experts for layer in self.layers)

    @property
    def expert_bits(self) -> int:
        """Bits of the routed experts; where projections differ, the widest."""
        return max(layer.bits(projection) for layer in self.layers for projection in layer.projections)

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over configuration, headers and samples of each file's data (not its name or place)."""
        digest = hashlib.sha256(self.header_digest.encode())
        for file in self.files:
            size = file.stat().st_size
            with open(file, "rb") as f:
                for at in (size // 3, size * 2 // 3, max(0, size - 65536)):
                    f.seek(at)
                    digest.update(f.read(65536))
        return digest.hexdigest()[:16]

    def find(self, block: str) -> ExpertLayer | None:
        """The layer whose experts belong to the model's module `block`; prefixes that mlx-lm drops may differ."""
        tail = block[block.find("layers.") :]
        exact = [layer for layer in self.layers if layer.block == block]
        similar = [layer for layer in self.layers if layer.block.endswith("." + tail)]
        return next(iter(exact or similar), None)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise CheckpointError(f"checkpoint {path} has no config.json; give the folder of a whole model") from e
    except (ValueError, OSError) as e:
        raise CheckpointError(f"{path}/config.json cannot be read ({e}); copy it again") from e
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"{path}/config.json names no model_type; give a model that mlx-lm can open")
    return config


def _shards_present(path: Path, files: tuple[Path, ...]) -> None:
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        wanted = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as e:
        raise CheckpointError(f"{index} is damaged; copy it again, or remove it") from e
    missing = sorted(wanted - {file.name for file in files})
    if missing:
        raise CheckpointError(
            f"checkpoint {path} lacks {len(missing)} of {len(wanted)} shards ({missing[0]} is the first); copy them there"
        )


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """Header entries without metadata, and the offset at which the data starts."""
    size = file.stat().st_size
    with open(file, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 8 or length > size - 8:
            raise CheckpointError(f"{file} is truncated: {size} bytes do not hold its header; copy it again")
        try:
            header = json.loads(f.read(length))
        except ValueError as e:
            raise CheckpointError(f"{file} has a damaged header; copy it again") from e
    header.pop("__metadata__", None)
    end = 8 + length + max((h["data_offsets"][1] for h in header.values()), default=0)
    if end > size:
        raise CheckpointError(f"{file} is truncated: {size} of {end} bytes; copy it again")
    return header, 8 + length


def _expert_layers(path: Path, config: dict[str, Any], headers: list[tuple[dict[str, Any], int]]) -> list[ExpertLayer]:
    """Group the expert tensors by block, projection and tensor; order the layers as the model runs them."""
    stacked: dict[str, list[ExpertTensor]] = defaultdict(list)
    single: dict[str, dict[tuple[str, str], dict[int, tuple[int, int, Any]]]] = defaultdict(lambda: defaultdict(dict))
    for index, (header, start) in enumerate(headers):
        for name, entry in header.items():
            offset = start + entry["data_offsets"][0]
            if m := PER_EXPERT.match(name):
                _streamable(path, name, m["tensor"], entry["dtype"])
                key = PROJECTIONS.get(m["projection"], m["projection"]), m["tensor"]
                single[m["block"]][key][int(m["expert"])] = (index, offset, entry)
            elif (m := STACKED.match(name)) and len(entry["shape"]) >= 2:
                _streamable(path, name, m["tensor"], entry["dtype"])
                experts, *shape = entry["shape"]
                step = int(np.prod(shape)) * ITEM_BYTES[entry["dtype"]]
                stacked[m["block"]].append(
                    ExpertTensor(
                        m["projection"], m["tensor"], entry["dtype"], tuple(shape),
                        np.full(experts, index, np.int32), offset + step * np.arange(experts, dtype=np.int64),
                    )
                )  # fmt: skip
    layers = [ExpertLayer(block, tuple(sorted(t, key=lambda t: t.name))) for block, t in stacked.items()]
    layers += [_joined(path, block, tensors) for block, tensors in single.items()]
    used = [layer for layer in layers if _layer_number(layer.block) < _layer_count(config)]
    for layer in used:
        if len({len(t.file) for t in layer.tensors}) != 1:
            raise CheckpointError(f"checkpoint {path}: {layer.block} has tensors of differing numbers of experts")
    return sorted(used, key=lambda layer: _layer_number(layer.block))


def _joined(path: Path, block: str, tensors: dict[tuple[str, str], dict[int, tuple[int, int, Any]]]) -> ExpertLayer:
    joined = []
    experts = 1 + max(e for places in tensors.values() for e in places)
    for (projection, tensor), places in sorted(tensors.items()):
        kinds = {(p[2]["dtype"], tuple(p[2]["shape"])) for p in places.values()}
        if len(places) != experts or len(kinds) != 1:
            raise CheckpointError(
                f"checkpoint {path}: {block} has {projection}.{tensor} for {len(places)} of {experts} experts "
                f"in {len(kinds)} shapes; copy the missing shards"
            )
        dtype, shape = kinds.pop()
        dtype = "U32" if tensor == "weight_packed" else dtype
        file = np.array([places[e][0] for e in range(experts)], np.int32)
        offset = np.array([places[e][1] for e in range(experts)], np.int64)
        joined.append(ExpertTensor(projection, COMPRESSED.get(tensor, tensor), dtype, shape, file, offset))
    return ExpertLayer(block, tuple(joined), symmetric=any(tensor in COMPRESSED for _, tensor in tensors))


def _streamable(path: Path, name: str, tensor: str, dtype: str) -> None:
    if dtype not in ITEM_BYTES or tensor in ("weight_scale_inv", "global_scale"):
        raise CheckpointError(
            f"checkpoint {path}: {name} ({dtype}) cannot be streamed in place; convert the model with mlx_lm.convert"
        )


def _layer_number(block: str) -> int:
    m = re.search(r"layers\.(\d+)", block)
    return int(m[1]) if m else 0


def _layer_count(config: dict[str, Any]) -> float:
    """Layers the model runs; checkpoints may hold more (multi-token prediction heads), which mlx-lm drops."""
    text = {**config, **config.get("text_config", {})}
    return next((int(text[key]) for key in LAYER_KEYS if text.get(key)), float("inf"))
