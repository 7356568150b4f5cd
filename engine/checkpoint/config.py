"""Configuration: reads config.json and the shard index, and checks that both agree with the tensors.

config.json may omit any of these numbers; the numbers it gives must match the shapes.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

from .experts import ExpertLayer
from .headers import Entry
from .places.find import hub_name

TOP_K_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts", "top_k")
LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer")
DENSE_KEYS = ("first_k_dense_replace", "num_dense_layers")  # number of layers before the first one with experts
PATTERN_KEYS = ("moe_layer_freq", "mlp_layer_types", "is_moe_layer")  # which later layers have experts, if not all
EXPERT_KEYS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
INNER_KEYS = ("moe_intermediate_size", "expert_ffn_hidden_size")  # width of an expert; otherwise intermediate_size
OUTER_KEYS = ("hidden_size", "moe_latent_size", "routed_expert_hidden_size")
GENERIC = re.compile(r"(?i)checkpoint|model|mlx|snapshot|weights|(?=.*\d)[0-9a-f]{7,64}")  # folder names of any model


def model_name(path: str | Path) -> str:
    """The model's name for people: `owner/name` for a snapshot in the hub's cache and for a folder of LM Studio, otherwise
    the name of the nearest folder at or above `path` that is not generic. Links are not followed, so a link keeps the name
    its user gave it."""
    place = Path(os.path.abspath(Path(path).expanduser()))
    if name := hub_name(place):
        return name
    names = [part.name for part in (place, *place.parents)]
    return next((name for name in names if name and not GENERIC.fullmatch(name)), place.name)


def read_config(path: Path) -> dict[str, Any]:
    """The content of config.json in the folder `path`. Raises `CheckpointError`."""
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
            raise CheckpointError(f"{file} has {key}={config[key]!r}, which is not a JSON object; copy it again")
    return config


def check_index(path: Path, files: tuple[Path, ...], tensors: dict[str, Entry]) -> None:
    """Raises `CheckpointError` unless every tensor of the index is in the shard that the index names. No index: no check."""
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
            raise CheckpointError(f"{path / shard} lacks {name!r}, which {index.name} lists; copy the shard again")


def check_config(path: Path, layer: ExpertLayer, text: dict[str, Any], quantization: dict[str, Any] | None) -> None:
    """Raises `CheckpointError` unless the numbers in config.json are those of a layer's shapes. `text`: the language model's
    part of it; `quantization`: its entries by module, or None for a packed store."""
    first, last = ("fc1", "fc2") if "fc1" in layer.projections else ("up_proj", "down_proj")
    inner_keys = INNER_KEYS if any(text.get(key) for key in INNER_KEYS) else ("intermediate_size",)
    for what, found, keys in (
        ("experts", layer.experts, EXPERT_KEYS),
        ("rows per expert", layer.input_dims(last), inner_keys),
        ("columns per expert", layer.input_dims(first), OUTER_KEYS),
    ):
        given = {key: text[key] for key in keys if type(text.get(key)) is int and text[key] > 0}
        if given and found not in given.values():
            raise CheckpointError(
                f"checkpoint {path}: {layer.block} has {found} {what}, but config.json has "
                f"{', '.join(f'{key}={value}' for key, value in given.items())}; copy both again"
            )
    for projection, holder in itertools.product(layer.projections, ("switch_mlp", "switch_glu", "experts")):
        name = f"{layer.block}.{holder}.{projection}"
        declared, how = (quantization or {}).get(name), layer.quantization(projection)
        if isinstance(declared, dict) and (how is None or any((declared.get(k) or v) != v for k, v in how.items())):
            raise CheckpointError(f"checkpoint {path}: {name} is {how}, but config.json has {declared}; copy both again")


def check_layers(path: Path, layers: tuple[ExpertLayer, ...], text: dict[str, Any]) -> None:
    """Raises `CheckpointError` unless exactly the layers after the dense ones have experts, where config.json gives the
    number of dense ones."""
    dense = next((text[key] for key in DENSE_KEYS if type(text.get(key)) is int), None)
    count = layer_count(text)
    if dense is None or math.isinf(count) or any(text.get(key, 1) != 1 for key in PATTERN_KEYS):
        return
    found = {layer.number for layer in layers}
    if found != set(range(dense, int(count))):
        raise CheckpointError(
            f"checkpoint {path} has experts in {len(found)} layers ({min(found)} to {max(found)}), but config.json has "
            f"{int(count) - dense} ({dense} to {int(count) - 1}); copy the missing shards, or the right config.json"
        )


def layer_count(text: dict[str, Any]) -> float:
    """Layers that the model runs; infinite if config.json has no number. A checkpoint may hold more (multi-token
    prediction), which mlx-lm drops."""
    return next((text[key] for key in LAYER_KEYS if type(text.get(key)) is int and text[key] > 0), math.inf)
