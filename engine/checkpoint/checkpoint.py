"""Checkpoint: where every routed expert lies in the safetensors files, read from the headers alone.

Experts are streamed in place, so all that is needed is the byte range of each expert's tensors. Three layouts are known:
stacked, as MLX-converted checkpoints have it (`...switch_mlp.gate_proj.weight` of shape [experts, out, in], an expert is
one slice); one tensor an expert, as most originals on the hub have it (`...experts.7.gate_proj.weight`); and stacked with
gate above up in one tensor (`...experts.gate_up_proj` of shape [experts, 2 out, in]), as some originals have it. What
lies otherwise, or does not agree with itself or with config.json, is refused. Nothing here imports MLX; opening a
checkpoint of 1 T parameters (200,000 tensors) is a matter of seconds.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import CheckpointError, KnobError

from .experts import CONVERT, FLOATS, FP8, FP8_SCALES, INT4_ZERO, MLX_TYPES, PACK, ExpertLayer, ExpertTensor
from .fingerprint import Blocks, blocks_of, fingerprint
from .headers import ITEM_BYTES, Entry, read_headers
from .naming import model_name
from .store import Description, layer_files, open_layers, read_description

HALF = FLOATS[1:]
PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
WITHOUT_GATE = {"up_proj": "fc1", "down_proj": "fc2"}  # as mlx-lm's SwitchMLP calls them
COMPRESSED = {"weight_packed": "weight", "weight_scale": "scales"}  # compressed-tensors INT4, as Kimi K2.5's original
_TENSOR = r"\.(?P<projection>gate_proj|up_proj|down_proj|w1|w2|w3|fc1|fc2)\.(?P<tensor>\w+)$"
PER_EXPERT = re.compile(r"^(?P<block>.+)\.experts\.(?P<expert>\d+)" + _TENSOR)
STACKED = re.compile(r"^(?P<block>.+)\.(?:switch_mlp|switch_glu|experts)" + _TENSOR)
FUSED = re.compile(r"^(?P<block>.+)\.(?:experts|switch_mlp|switch_glu)\.(?P<part>(?:gate_up|gate|up|down)_proj.*)$")
GRANITE = re.compile(r"^(?P<block>.+\.block_sparse_moe)\.(?P<part>input_linear|output_linear)\.weight$")
MXFP4_BLOCKS = re.compile(r"^(?P<block>.+)\.experts\.(?P<projection>gate_up_proj|down_proj)_(?P<tensor>blocks|scales|bias)$")
GATE_ABOVE_UP = ("qwen3_5_moe",)  # whose gate_up_proj is [experts, 2 out, in]; others transpose it, or mix the rows
EXPERT_NAMES = (PER_EXPERT, STACKED, MXFP4_BLOCKS, GRANITE, FUSED)
HALVES = {"gate_up_proj": ("gate_proj", "up_proj"), "input_linear": ("gate_proj", "up_proj"),
          "down_proj": ("down_proj",), "output_linear": ("down_proj",)}  # fmt: skip
DROPPED = re.compile(r"(?:^|\.)(?:mtp|vision_tower|vision_model|visual|mm_projector|multi_modal_projector)\.")
LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")  # the first number in a name
TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "top_k")
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer")
DENSE_KEYS = ("first_k_dense_replace", "num_dense_layers")  # how many layers come before the first with experts
PATTERN_KEYS = ("moe_layer_freq", "mlp_layer_types", "is_moe_layer")  # which of the others have experts, if not all
EXPERT_KEYS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
INNER_KEYS = ("moe_intermediate_size", "expert_ffn_hidden_size")  # of an expert; where there is none, intermediate_size
OUTER_KEYS = ("hidden_size", "moe_latent_size", "routed_expert_hidden_size")


@dataclass(frozen=True)
class Checkpoint:
    """A model's files and, per Mixture-of-Experts layer, where its routed experts lie."""

    path: Path
    config: dict[str, Any]
    files: tuple[Path, ...]
    layers: tuple[ExpertLayer, ...]
    rest_bytes: int  # of the model's tensors but the routed experts; multi-token prediction and vision are not counted
    half_bytes: int  # those of them that are 16-bit floats
    header_digest: str  # of configuration, tensors' names, types and shapes, and a store's description
    tensors: int  # in all files
    blocks: Blocks = field(repr=False)  # of their data, for the fingerprint
    store: Description | None = None  # None: the experts are not packed

    @classmethod
    def open(cls, path: str | Path, *, to_pack: bool = False) -> Checkpoint:
        """Read config.json and all headers. Raises `CheckpointError` for a folder that is missing, truncated, not a
        Mixture of Experts, or whose experts lie in a layout that cannot be streamed in place. `to_pack`: layouts that can
        only be packed pass too (`engine.packing.sources`); nothing but that can be done with such a checkpoint."""
        path = Path(path).expanduser()
        if not path.is_dir():
            raise CheckpointError(f"checkpoint {path} is not a folder; give the folder that holds config.json")
        config = _config(path)
        files = tuple(sorted(path.glob("model*.safetensors")))
        if not files:
            raise CheckpointError(f"checkpoint {path} has no model*.safetensors; copy the model's shards there")
        description = read_description(path)
        if description is not None:
            files += layer_files(path, description)
        tensors = read_headers(files)
        _index_agrees(path, files, tensors)
        text = {**config, **config.get("text_config", {})}
        count = _layer_count(text)
        kept = {name: entry for name, entry in tensors.items() if _is_kept(name.partition(".experts.")[0], count)}
        if description is None:
            layers = tuple(_expert_layers(path, str(config["model_type"]), kept, to_pack=to_pack))
            streamed = [(t.dtype, t.nbytes * layer.experts) for layer in layers for t in layer.tensors]
        else:
            layers = open_layers(description, tensors, files)
            streamed = [
                (tensors[name].dtype, tensors[name].nbytes) for layer in description.layers for name in layer.tensors
            ]
        resident = [  # mlx-lm widens FP8 to bfloat16 when it opens it
            ("BF16", 2 * entry.nbytes) if entry.dtype == FP8 else (entry.dtype, entry.nbytes) for entry in kept.values()
        ]
        total, half = (
            sum(n for dtype, n in resident if dtype in kind) - sum(n for dtype, n in streamed if dtype in kind)
            for kind in (ITEM_BYTES, HALF)
        )
        blocks = blocks_of(tensors)
        described = json.dumps([config, description and description.digest, blocks.tensors], sort_keys=True)
        digest = hashlib.sha256(described.encode()).hexdigest()
        checkpoint = cls(path, config, files, layers, total, half, digest, len(tensors), blocks, description)
        if not layers:
            raise CheckpointError(
                f"checkpoint {path} ({checkpoint.architecture}) has no routed experts that can be streamed; "
                "give a Mixture-of-Experts model, as converted by mlx-lm or with one tensor an expert"
            )
        for layer in layers:
            if layer.only_to_pack:
                continue
            if description is None:
                layer.check()
            agrees_with_config(path, layer, text, config.get("quantization") if description is None else None)
        _layers_complete(path, layers, text)
        return checkpoint

    @property
    def levels(self) -> tuple[int, ...] | None:
        """Bits that a store has its experts at; None: they are not packed."""
        return None if self.store is None else self.store.levels

    @property
    def name(self) -> str:
        return model_name(self.path)

    @property
    def architecture(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of the configuration (wrappers nest it)."""
        return {**self.config, **self.config.get("text_config", {})}

    @property
    def top_k(self) -> int:
        """Experts chosen for a token in each layer; where layers differ, the most."""
        key = next((key for key in TOP_K_KEYS if self.text_config.get(key)), None)
        if key is None:
            raise CheckpointError(f"{self.path}/config.json does not say how many experts a token uses; add {TOP_K_KEYS[0]}")
        given = self.text_config[key]
        counts = given if isinstance(given, list) else [given]
        experts = max(layer.experts for layer in self.layers)
        if not all(type(count) is int and 0 < count <= experts for count in counts):
            raise CheckpointError(f"{self.path}/config.json has {key}={given}, not 1 to {experts} experts; copy it again")
        return int(max(counts))

    def with_top_k(self, count: int | None) -> Checkpoint:
        """The same model with `count` experts chosen for a token, where layers differ at most; None: as it is.

        Raises `KnobError` for more than the model's own.
        """
        if count is None:
            return self
        if count > self.top_k:
            raise KnobError(
                f"top_k={count} is above the {self.top_k} experts a token that {self.name} chooses and has nothing to "
                f"gain; use at most {self.top_k}"
            )
        key = next(key for key in TOP_K_KEYS if self.text_config.get(key))
        given = self.text_config[key]
        fewer = [min(n, count) for n in given] if isinstance(given, list) else count
        config = {**self.config, **({key: fewer} if key in self.config else {})}
        if key in config.get("text_config", {}):
            config["text_config"] = {**config["text_config"], key: fewer}
        return dataclasses.replace(self, config=config)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all routed experts on disk."""
        return sum(layer.expert_bytes * layer.experts for layer in self.layers)

    def resident_bytes(self, *, widened: bool) -> int:
        """Bytes of all that is not a routed expert; `widened`: with 16-bit floats in 32."""
        return self.rest_bytes + self.half_bytes * widened

    @property
    def expert_bits(self) -> int:
        """Bits of the routed experts; where projections differ, the widest."""
        return max(layer.bits(projection) for layer in self.layers for projection in layer.projections)

    @cached_property
    def fingerprint(self) -> str:
        """What the model is known by, see `engine.checkpoint.fingerprint`; not its folder's name or place."""
        return fingerprint(self.path, self.header_digest, self.files, self.blocks)

    @cached_property
    def bit_errors(self) -> np.ndarray | None:
        """float64 [layers, experts, projections, levels] of a store: squared error of the weights at each level against the
        source's, relative to their squares; NaN for experts that a layer does not have. None: not a store."""
        if self.levels is None:
            return None
        most = max(layer.experts for layer in self.layers)
        out = np.full(
            (len(self.layers), most, max(len(layer.projections) for layer in self.layers), len(self.levels)), np.nan
        )
        for number, layer in enumerate(self.layers):
            assert layer.records is not None
            out[number, : layer.experts, : len(layer.projections)] = layer.records.errors
        return out

    def find(self, block: str) -> ExpertLayer | None:
        """The layer whose experts belong to the model's module `block`; what mlx-lm renames is around the layer's number."""
        return next((layer for layer in self.layers if _layer_number(layer.block) == _layer_number(block)), None)


def _config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise CheckpointError(f"checkpoint {path} has no config.json; give the folder of a whole model") from e
    except (ValueError, OSError, RecursionError) as e:
        raise CheckpointError(f"{file} cannot be read ({e}); copy it again") from e
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{file} names no model_type; give a model that mlx-lm can open")
    for key in ("text_config", "quantization"):
        if not isinstance(config.get(key, {}), dict):
            raise CheckpointError(f"{file} has {key}={config[key]!r}, which is no JSON object; copy it again")
    return config


def _index_agrees(path: Path, files: tuple[Path, ...], tensors: dict[str, Entry]) -> None:
    """Every tensor of the index is in the shard that the index says, if there is an index."""
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        shard_of = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = set(shard_of.values())
        missing = sorted(shards - {file.name for file in files})
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{index} is damaged; copy it again, or remove it") from e
    if missing:
        raise CheckpointError(
            f"checkpoint {path} lacks {len(missing)} of {len(shards)} shards ({missing[0]!s:.80} is the first); "
            "copy them there"
        )
    names = [file.name for file in files]
    for name, shard in shard_of.items():
        if name not in tensors or names[tensors[name].file] != shard:
            raise CheckpointError(f"{path / shard} lacks {name!r}, which {index.name} says it has; copy the shard again")


@cache
def _is_kept(name: str, layers: float) -> bool:
    """Whether mlx-lm keeps a tensor: it drops vision towers and multi-token prediction, whose layers come last."""
    if DROPPED.search(name):
        return False
    return not (m := LAYER.search(name)) or int(m[1]) < layers


def _expert_layers(path: Path, architecture: str, tensors: dict[str, Entry], *, to_pack: bool) -> list[ExpertLayer]:
    """Group the expert tensors by block, projection and tensor; order the layers as the model runs them."""
    stacked: dict[str, list[ExpertTensor]] = defaultdict(list)
    single: dict[str, dict[tuple[str, str], dict[int, Entry]]] = defaultdict(lambda: defaultdict(dict))
    for name, entry in tensors.items():
        if m := PER_EXPERT.match(name):
            if m["tensor"] == "weight_shape":
                continue
            if not (to_pack and (entry.dtype == FP8 or m["tensor"] == FP8_SCALES)):
                _streamable(path, name, m["tensor"], entry)
            key = PROJECTIONS.get(m["projection"], m["projection"]), m["tensor"]
            places, expert = single[m["block"]][key], int(m["expert"])
            if expert in places:
                raise CheckpointError(f"checkpoint {path}: {name} is there under two names; copy the model again")
            places[expert] = entry
        elif m := STACKED.match(name):
            _streamable(path, name, m["tensor"], entry, least_dims=2)
            stacked[m["block"]].append(_slices(m["projection"], m["tensor"], entry))
        elif to_pack and (m := MXFP4_BLOCKS.match(name)):
            stacked[m["block"]].append(_slices(m["projection"], m["tensor"], entry))
        elif m := GRANITE.match(name) or FUSED.match(name):
            halves = HALVES.get(m["part"], ()) if m.re is GRANITE or architecture in GATE_ABOVE_UP else ()
            if not halves or len(entry.shape) != 3 or entry.shape[1] % len(halves):
                remedy = PACK if MXFP4_BLOCKS.match(name) else CONVERT
                raise CheckpointError(
                    f"checkpoint {path}: {name} is not one byte range an expert and cannot be streamed in place; {remedy}"
                )
            _streamable(path, name, "weight", entry)
            stacked[m["block"]] += [_slices(half, "weight", entry, n, len(halves)) for n, half in enumerate(halves)]
    layers = [ExpertLayer(block, tuple(sorted(t, key=lambda t: t.name))) for block, t in stacked.items()]
    layers += [_joined(path, block, parts) for block, parts in single.items()]
    layers.sort(key=lambda layer: _layer_number(layer.block))
    for one, other in itertools.pairwise(layers):
        if _layer_number(one.block) == _layer_number(other.block):
            raise CheckpointError(f"checkpoint {path} has experts twice, in {one.block} and {other.block}; {CONVERT}")
    return layers


def _slices(projection: str, tensor: str, entry: Entry, part: int = 0, parts: int = 1) -> ExpertTensor:
    """Of a stacked tensor [experts, rows, ...], the `part`th of each expert's `parts` equal runs of rows."""
    experts, rows, *rest = entry.shape
    shape = (rows // parts, *rest)
    step = math.prod(shape) * ITEM_BYTES[entry.dtype]
    offset = entry.offset + step * (parts * np.arange(experts, dtype=np.int64) + part)
    return ExpertTensor(projection, tensor, entry.dtype, shape, np.full(experts, entry.file, np.int32), offset)


def _joined(path: Path, block: str, parts: dict[tuple[str, str], dict[int, Entry]]) -> ExpertLayer:
    """One layer of which every expert has tensors of its own."""
    joined = []
    experts = 1 + max(e for places in parts.values() for e in places)
    without_gate = not any(projection == "gate_proj" for projection, _ in parts)
    for (projection, tensor), places in sorted(parts.items()):
        kinds = {(entry.dtype, entry.shape) for entry in places.values()}
        if len(places) != experts or len(kinds) != 1:
            raise CheckpointError(
                f"checkpoint {path}: {block} has {projection}.{tensor} for {len(places)} of {experts} experts "
                f"in {len(kinds)} shapes; copy the missing shards"
            )
        dtype, shape = kinds.pop()
        dtype = "U32" if tensor == "weight_packed" else dtype
        name = WITHOUT_GATE.get(projection, projection) if without_gate else projection
        file = np.array([places[e].file for e in range(experts)], np.int32)
        offset = np.array([places[e].offset for e in range(experts)], np.int64)
        joined.append(ExpertTensor(name, COMPRESSED.get(tensor, tensor), dtype, shape, file, offset))
    zeros = {tensor.projection: INT4_ZERO for tensor in joined} if any(t in COMPRESSED for _, t in parts) else {}
    return ExpertLayer(block, tuple(joined), zeros)


def _streamable(path: Path, name: str, tensor: str, entry: Entry, least_dims: int = 1) -> None:
    known = tensor in ("weight", "scales", "biases", "bias", *COMPRESSED)
    dtypes = ("I32",) if tensor == "weight_packed" else MLX_TYPES
    if not known or entry.dtype not in dtypes or len(entry.shape) < least_dims or 0 in entry.shape:
        remedy = PACK if entry.dtype == FP8 or tensor == FP8_SCALES else CONVERT
        raise CheckpointError(f"checkpoint {path}: {name} ({entry.dtype}) cannot be streamed in place; {remedy}")


def agrees_with_config(path: Path, layer: ExpertLayer, text: dict[str, Any], quantization: dict[str, Any] | None) -> None:
    """Numbers that config.json gives are those of the shapes; it may leave any of them out."""
    first, last = ("fc1", "fc2") if "fc1" in layer.projections else ("up_proj", "down_proj")
    inner_keys = INNER_KEYS if any(text.get(key) for key in INNER_KEYS) else ("intermediate_size",)
    for what, found, keys in (
        ("experts", layer.experts, EXPERT_KEYS),
        ("rows an expert", layer.input_dims(last), inner_keys),
        ("columns an expert", layer.input_dims(first), OUTER_KEYS),
    ):
        given = {key: text[key] for key in keys if type(text.get(key)) is int and text[key] > 0}
        if given and found not in given.values():
            raise CheckpointError(
                f"checkpoint {path}: {layer.block} has {found} {what}, but config.json says "
                f"{', '.join(f'{key}={value}' for key, value in given.items())}; copy both again"
            )
    for projection, holder in itertools.product(layer.projections, ("switch_mlp", "switch_glu", "experts")):
        name = f"{layer.block}.{holder}.{projection}"
        said, how = (quantization or {}).get(name), layer.quantization(projection)
        if isinstance(said, dict) and (how is None or any((said.get(k) or v) != v for k, v in how.items())):
            raise CheckpointError(f"checkpoint {path}: {name} is {how}, but config.json says {said}; copy both again")


def _layers_complete(path: Path, layers: tuple[ExpertLayer, ...], text: dict[str, Any]) -> None:
    """Where config.json says which layers have experts by a number of dense ones before, those and no others have them."""
    dense = next((text[key] for key in DENSE_KEYS if type(text.get(key)) is int), None)
    count = _layer_count(text)
    if dense is None or math.isinf(count) or any(text.get(key, 1) != 1 for key in PATTERN_KEYS):
        return
    found = {_layer_number(layer.block) for layer in layers}
    if found != set(range(dense, int(count))):
        raise CheckpointError(
            f"checkpoint {path} has experts in {len(found)} layers ({min(found)} to {max(found)}), but config.json says "
            f"{int(count) - dense} ({dense} to {int(count) - 1}); copy the missing shards, or the right config.json"
        )


def _layer_number(block: str) -> int:
    m = LAYER.search(block)
    return int(m[1]) if m else 0


def _layer_count(text: dict[str, Any]) -> float:
    """Layers the model runs; checkpoints may hold more (multi-token prediction heads), which mlx-lm drops."""
    return next((text[key] for key in LAYER_KEYS if type(text.get(key)) is int and text[key] > 0), math.inf)
