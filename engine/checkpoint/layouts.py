"""Layouts: finds each expert's byte ranges among the tensor names of a checkpoint.

Three layouts can be streamed in place: stacked, as in MLX conversions (`...switch_mlp.gate_proj.weight` of shape
[experts, out, in], one slice per expert); one tensor per expert, as in most originals on the hub
(`...experts.7.gate_proj.weight`); and stacked with gate above up in one tensor (`...experts.gate_up_proj` of shape
[experts, 2 out, in]). Two more can only be packed: FP8 in blocks and the MXFP4 of gpt_oss. Other layouts are refused.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import numpy as np

from engine.errors import CheckpointError

from .dtypes import FP8, ITEM_BYTES, MLX_TYPES
from .experts import CONVERT, FP8_SCALES, INT4_ZERO, LAYER, PACK, ExpertLayer, ExpertTensor
from .files.headers import Entry

PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
WITHOUT_GATE = {"up_proj": "fc1", "down_proj": "fc2"}  # the names in mlx-lm's SwitchMLP
COMPRESSED = {"weight_packed": "weight", "weight_scale": "scales"}  # compressed-tensors INT4, as in Kimi K2.5's original
_TENSOR = r"\.(?P<projection>gate_proj|up_proj|down_proj|w1|w2|w3|fc1|fc2)\.(?P<tensor>\w+)$"
PER_EXPERT = re.compile(r"^(?P<block>.+)\.experts\.(?P<expert>\d+)" + _TENSOR)
STACKED = re.compile(r"^(?P<block>.+)\.(?:switch_mlp|switch_glu|experts)" + _TENSOR)
FUSED = re.compile(r"^(?P<block>.+)\.(?:experts|switch_mlp|switch_glu)\.(?P<part>(?:gate_up|gate|up|down)_proj.*)$")
GRANITE = re.compile(r"^(?P<block>.+\.block_sparse_moe)\.(?P<part>input_linear|output_linear)\.weight$")
MXFP4_BLOCKS = re.compile(r"^(?P<block>.+)\.experts\.(?P<projection>gate_up_proj|down_proj)_(?P<tensor>blocks|scales|bias)$")
GATE_ABOVE_UP = ("qwen3_5_moe",)  # gate_up_proj is [experts, 2 out, in]; other architectures transpose or interleave it
EXPERT_NAMES = (PER_EXPERT, STACKED, MXFP4_BLOCKS, GRANITE, FUSED)
HALVES = {"gate_up_proj": ("gate_proj", "up_proj"), "input_linear": ("gate_proj", "up_proj"),
          "down_proj": ("down_proj",), "output_linear": ("down_proj",)}  # fmt: skip
DROPPED = re.compile(r"(?:^|\.)(?:mtp|vision_tower|vision_model|visual|mm_projector|multi_modal_projector)\.")


@cache
def is_kept(name: str, layers: float) -> bool:
    """Whether mlx-lm keeps a tensor. It drops vision towers and the multi-token prediction layers after the last one."""
    if DROPPED.search(name):
        return False
    return not (m := LAYER.search(name)) or int(m[1]) < layers


def expert_layers(path: Path, architecture: str, tensors: dict[str, Entry], *, to_pack: bool) -> list[ExpertLayer]:
    """The layers of experts, in the order in which the model runs them. `to_pack` also accepts the layouts that can only be
    packed. Raises `CheckpointError` for a layout that is not known and for experts that are there twice."""
    stacked: dict[str, list[ExpertTensor]] = defaultdict(list)
    single: dict[str, dict[tuple[str, str], dict[int, Entry]]] = defaultdict(lambda: defaultdict(dict))
    for name, entry in tensors.items():
        if m := PER_EXPERT.match(name):
            if m["tensor"] == "weight_shape":
                continue
            if not (to_pack and (entry.dtype == FP8 or m["tensor"] == FP8_SCALES)):
                _check_streamable(path, name, m["tensor"], entry)
            key = PROJECTIONS.get(m["projection"], m["projection"]), m["tensor"]
            places, expert = single[m["block"]][key], int(m["expert"])
            if expert in places:
                raise CheckpointError(f"checkpoint {path}: {name} is there under two names; copy the model again")
            places[expert] = entry
        elif m := STACKED.match(name):
            _check_streamable(path, name, m["tensor"], entry, least_dims=2)
            stacked[m["block"]].append(_slices(m["projection"], m["tensor"], entry))
        elif to_pack and (m := MXFP4_BLOCKS.match(name)):
            stacked[m["block"]].append(_slices(m["projection"], m["tensor"], entry))
        elif m := GRANITE.match(name) or FUSED.match(name):
            halves = HALVES.get(m["part"], ()) if m.re is GRANITE or architecture in GATE_ABOVE_UP else ()
            if not halves or len(entry.shape) != 3 or entry.shape[1] % len(halves):
                remedy = PACK if MXFP4_BLOCKS.match(name) else CONVERT
                raise CheckpointError(
                    f"checkpoint {path}: {name} is not one byte range per expert and cannot be streamed in place; {remedy}"
                )
            _check_streamable(path, name, "weight", entry)
            stacked[m["block"]] += [_slices(half, "weight", entry, n, len(halves)) for n, half in enumerate(halves)]
    layers = [ExpertLayer(block, tuple(sorted(t, key=lambda t: t.name))) for block, t in stacked.items()]
    layers += [_joined(path, block, parts) for block, parts in single.items()]
    layers.sort(key=lambda layer: layer.number)
    for one, other in itertools.pairwise(layers):
        if one.number == other.number:
            raise CheckpointError(f"checkpoint {path} has experts twice, in {one.block} and {other.block}; {CONVERT}")
    return layers


def _slices(projection: str, tensor: str, entry: Entry, part: int = 0, parts: int = 1) -> ExpertTensor:
    """Number `part` of the `parts` equal runs of rows that each expert has in a stacked tensor [experts, rows, ...]."""
    experts, rows, *rest = entry.shape
    shape = (rows // parts, *rest)
    step = math.prod(shape) * ITEM_BYTES[entry.dtype]
    offset = entry.offset + step * (parts * np.arange(experts, dtype=np.int64) + part)
    return ExpertTensor(projection, tensor, entry.dtype, shape, np.full(experts, entry.file, np.int32), offset)


def _joined(path: Path, block: str, parts: dict[tuple[str, str], dict[int, Entry]]) -> ExpertLayer:
    """One layer whose experts have tensors of their own."""
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


def _check_streamable(path: Path, name: str, tensor: str, entry: Entry, least_dims: int = 1) -> None:
    known = tensor in ("weight", "scales", "biases", "bias", *COMPRESSED)
    dtypes = ("I32",) if tensor == "weight_packed" else MLX_TYPES
    if not known or entry.dtype not in dtypes or len(entry.shape) < least_dims or 0 in entry.shape:
        remedy = PACK if entry.dtype == FP8 or tensor == FP8_SCALES else CONVERT
        raise CheckpointError(f"checkpoint {path}: {name} ({entry.dtype}) cannot be streamed in place; {remedy}")
