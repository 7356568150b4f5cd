"""Layouts: finds each expert's byte ranges among the tensors of a checkpoint.

Names alone tell two layouts: stacked experts, as in MLX conversions (`...switch_mlp.gate_proj.weight` of shape [experts,
out, in], one slice per expert), and one tensor per expert, as in most originals (`...experts.7.gate_proj.weight`). For all
others `engine.checkpoint.sanitize` follows mlx-lm's own code. An expert's part that is one byte range is streamed in place;
any other one can be packed, as can FP8 with block scales.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from engine.errors import CheckpointError

from .dtypes import FLOATS, FP8, ITEM_BYTES
from .experts import CONVERT, FP8_SCALES, INT4_ZERO, LAYER, PACK, ExpertLayer, ExpertTensor, layer_number
from .files.headers import Entry
from .sanitize.computed import computed_layers
from .sanitize.stored import Experts, follow

PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
WITHOUT_GATE = {"up_proj": "fc1", "down_proj": "fc2"}  # the names in mlx-lm's SwitchMLP
PLAIN = {
    "weight": (*FLOATS, "U32", FP8), "scales": (*FLOATS, "U8"), "biases": FLOATS, "bias": FLOATS, FP8_SCALES: FLOATS,
    "weight_packed": ("I32",), "weight_scale": FLOATS,
}  # fmt: skip
MLX_TENSORS = ("weight", "scales", "biases", "bias")
COMPRESSED = {"weight_packed": "weight", "weight_scale": "scales"}  # compressed-tensors INT4, as in Kimi K2.5's original
_TENSOR = r"\.(?P<projection>gate_proj|up_proj|down_proj|w1|w2|w3|fc1|fc2)\.(?P<tensor>\w+)$"
PER_EXPERT = re.compile(r"^(?P<block>.+)\.experts\.(?P<expert>\d+)" + _TENSOR)
STACKED = re.compile(r"^(?P<block>.+)\.(?:switch_mlp|switch_glu|experts)" + _TENSOR)
# Tensors that hold several projections or all experts; mlx-lm's code tells how.
FUSED = re.compile(
    r"^(?P<block>.+)\.(?:(?:experts|switch_mlp|switch_glu)\.(?:gate_up|gate|up|down)_proj"
    r"|block_sparse_moe\.(?:input|output)_linear).*$"
)
EXPERT_NAMES = (PER_EXPERT, STACKED, FUSED)
DROPPED = re.compile(r"(?:^|\.)(?:mtp|vision_tower|vision_model|visual|mm_projector|multi_modal_projector)\.")


@cache
def is_kept(name: str, layers: float) -> bool:
    """Whether mlx-lm keeps a tensor. It drops vision towers and the multi-token prediction layers after the last one."""
    if DROPPED.search(name):
        return False
    return not (m := LAYER.search(name)) or int(m[1]) < layers


@dataclass(frozen=True)
class Found:
    """The layers of experts, in the order in which the model runs them; the tensors of those that mlx-lm's code told (all
    others have one of `EXPERT_NAMES`); and type and bytes of what is stored for all layers."""

    layers: tuple[ExpertLayer, ...]
    followed: frozenset[str]
    streamed: tuple[tuple[str, int], ...]


def expert_layers(path: Path, tensors: dict[str, Entry], counts: Collection[int] = (), *, to_pack: bool) -> Found:
    """The layers of experts. `counts`: the numbers of experts that the model's layers have. `to_pack` also accepts the
    layouts that can only be packed. Raises `CheckpointError` for a layout that mlx-lm cannot open, and for experts that are
    there twice."""
    layers, unclear = _by_name(path, tensors)
    folded = [layer.block for layer in layers if layer.experts not in counts and layer.experts - 1 in counts]
    unclear += folded
    known = {layer.number for layer in layers} - {layer_number(name) for name in unclear}
    only_to_pack = [layer for layer in layers if layer.only_to_pack]
    followed: set[str] = set()
    if unclear or not layers or only_to_pack:
        experts = follow(path, tensors)
        first = next((n for n in unclear if n not in folded), None) or next((n.block for n in only_to_pack), None)
        if first is None and experts.refused is not None:  # one expert more than config.json has is no shared expert
            known = {layer.number for layer in layers}
        if first is not None and experts.refused is not None:
            raise CheckpointError(
                f"checkpoint {path}: {first} is in a layout that mlx-lm cannot open ({experts.refused}); give the model as "
                "mlx-lm has converted it"
            )
        layers = [layer for layer in layers if layer.number in known]
        for layer in experts.layers:
            if layer.number not in known:
                layers.append(layer)
                followed |= experts.sources[layer.block]
        layers += _computed(path, experts, known, to_pack=to_pack)
    layers.sort(key=lambda layer: layer.number)
    for one, other in itertools.pairwise(layers):
        if one.number == other.number:
            raise CheckpointError(f"checkpoint {path} has experts twice, in {one.block} and {other.block}; {CONVERT}")
    if not to_pack:
        for layer in layers:
            _check_in_place(path, layer)
    streamed = [(t.dtype, t.nbytes * n.experts) for n in layers if n.number in known for t in n.tensors]
    return Found(tuple(layers), frozenset(followed), (*streamed, *_stored(layers, tensors, known, followed)))


def _stored(
    layers: Iterable[ExpertLayer], tensors: dict[str, Entry], known: set[int], followed: set[str]
) -> Iterator[tuple[str, int]]:
    """Type and bytes of what the followed layers take of their tensors, as these count when they are resident."""
    taken = sum(t.nbytes * n.experts for n in layers if n.number not in known and n.compute is None for t in n.tensors)
    total = sum(tensors[name].nbytes for name in followed)
    for name in followed:
        wide = 2 if tensors[name].dtype == FP8 else 1
        yield ("BF16" if wide == 2 else tensors[name].dtype), wide * tensors[name].nbytes * taken // total


def _computed(path: Path, experts: Experts, known: set[int], *, to_pack: bool) -> list[ExpertLayer]:
    """The layers that mlx-lm computes. Raises `CheckpointError` for layers that can be streamed but not packed, or vice
    versa."""
    for block, name in experts.shared.items():
        if to_pack and layer_number(block) not in known:
            raise CheckpointError(
                f"checkpoint {path}: {name} also holds the shared expert and cannot be packed; stream it in place, or "
                f"{CONVERT}"
            )
    blocks = [block for block in experts.computed if layer_number(block) not in known]
    if blocks and not to_pack:
        raise CheckpointError(
            f"checkpoint {path}: mlx-lm computes {blocks[0]}.{experts.computed[blocks[0]]} from other values, so that it "
            f"cannot be streamed in place; {PACK}"
        )
    return computed_layers(path, blocks) if blocks else []


def _check_in_place(path: Path, layer: ExpertLayer) -> None:
    if layer.only_to_pack:
        worst = next(t for t in layer.tensors if t.dtype == FP8 or t.part is not None)
        what = "in FP8 with block scales" if worst.dtype == FP8 else "not one byte range per expert"
        raise CheckpointError(
            f"checkpoint {path}: {layer.block}.{worst.name} is {what} and cannot be streamed in place; {PACK}"
        )


def _by_name(path: Path, tensors: dict[str, Entry]) -> tuple[list[ExpertLayer], list[str]]:
    """The layers whose layout their names tell, and the experts' tensors whose names do not."""
    stacked: dict[str, list[ExpertTensor]] = defaultdict(list)
    single: dict[str, dict[tuple[str, str], dict[int, Entry]]] = defaultdict(lambda: defaultdict(dict))
    unclear = []
    for name, entry in tensors.items():
        if m := PER_EXPERT.match(name):
            if m["tensor"] == "weight_shape":
                continue
            if not _is_plain(m["tensor"], entry):
                unclear.append(name)
                continue
            key = PROJECTIONS.get(m["projection"], m["projection"]), m["tensor"]
            places, expert = single[m["block"]][key], int(m["expert"])
            if expert in places:
                raise CheckpointError(f"checkpoint {path}: {name} is there under two names; copy the model again")
            places[expert] = entry
        elif m := STACKED.match(name):
            if m["tensor"] in MLX_TENSORS and entry.dtype != FP8 and _is_plain(m["tensor"], entry) and len(entry.shape) > 1:
                stacked[m["block"]].append(_slices(m["projection"], m["tensor"], entry))
            else:
                unclear.append(name)
        elif FUSED.match(name):
            unclear.append(name)
    doubtful = {layer_number(name) for name in unclear}
    layers = [ExpertLayer(block, tuple(sorted(t, key=lambda t: t.name))) for block, t in stacked.items()]
    layers += [_joined(path, block, parts) for block, parts in single.items() if layer_number(block) not in doubtful]
    return layers, unclear


def _is_plain(tensor: str, entry: Entry) -> bool:
    """Whether the tensor's name and type tell how MLX computes with it."""
    return entry.dtype in PLAIN.get(tensor, ()) and len(entry.shape) > 0 and 0 not in entry.shape


def _slices(projection: str, tensor: str, entry: Entry) -> ExpertTensor:
    """The slice that each expert has in a stacked tensor [experts, rows, ...]."""
    experts, *shape = entry.shape
    step = math.prod(shape) * ITEM_BYTES[entry.dtype]
    offset = entry.offset + step * np.arange(experts, dtype=np.int64)
    return ExpertTensor(projection, tensor, entry.dtype, tuple(shape), np.full(experts, entry.file, np.int32), offset)


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
