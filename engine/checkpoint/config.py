"""Configuration: reads config.json as mlx-lm does, and checks that the model built from it agrees with the tensors."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

from .built.arguments import named
from .built.model import BuiltModel
from .experts import ExpertLayer
from .files.unreadable import refuse_pointer, unreadable
from .places.find import hub_name
from .store.rehearsal import read_rehearsal

TAG = '"__float__"'  # transformers writes {"__float__": "Infinity"} for a float that is not finite
GENERIC = re.compile(r"(?i)checkpoint|model|mlx|snapshot|weights|(?=.*\d)[0-9a-f]{7,64}")  # folder names of any model


def model_name(path: str | Path) -> str:
    """The model's name for people: `owner/name` for a snapshot in the hub's cache and for a folder of LM Studio, otherwise
    the name of the nearest folder at or above `path` that is not generic. Links are not followed, so a link keeps the name
    its user gave it. A rehearsal has its mark in its name."""
    if rehearsal := read_rehearsal(Path(path).expanduser()):
        return rehearsal.model
    place = Path(os.path.abspath(Path(path).expanduser()))
    if name := hub_name(place):
        return name
    names = [part.name for part in (place, *place.parents)]
    return next((name for name in names if name and not GENERIC.fullmatch(name)), place.name)


def not_finite_keys(config: Any) -> list[str]:
    """The keys of a configuration, at any depth, whose number is infinite or NaN."""
    found: list[str] = []
    for key, value in config.items() if isinstance(config, dict) else ():
        if isinstance(value, float) and not math.isfinite(value):
            found.append(key)
        found += not_finite_keys(value)
    return list(dict.fromkeys(found))


def read_config(path: Path) -> dict[str, Any]:
    """The content of config.json in the folder `path`, as mlx-lm takes it. Raises `CheckpointError`."""
    file = path / "config.json"
    try:
        content = file.read_bytes()
        refuse_pointer(file, content)
        config = json.loads(content.decode("utf-8"))
    except FileNotFoundError as e:
        if file.is_symlink():
            raise unreadable(file, e) from e
        raise CheckpointError(f"checkpoint {path} has no config.json; give the folder of a whole model") from e
    except OSError as e:
        raise unreadable(file, e) from e
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{file} cannot be read ({e}); copy it again") from e
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise CheckpointError(f"{file} names no model_type; give a model that mlx-lm can open")
    for key in ("text_config", "quantization", "quantization_config"):
        if not isinstance(config.get(key, None) or {}, dict):
            raise CheckpointError(f"{file} has {key}={config[key]!r}, which is not a JSON object; copy it again")
    if TAG in json.dumps(config):
        from mlx_lm.utils import _decode_tagged_floats  # importing mlx-lm takes a second

        return dict(_decode_tagged_floats(config))
    return dict(config)


def check_config(path: Path, layer: ExpertLayer, built: BuiltModel, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` unless the model built from the configuration has experts of a layer's shapes."""
    switch = built.switch(layer.number)
    if switch is None:
        return
    first, last = ("fc1", "fc2") if "fc1" in layer.projections else ("up_proj", "down_proj")
    for what, found, wanted, words in (
        ("experts", layer.experts, switch.experts, "expert"),
        ("rows per expert", layer.input_dims(last), switch.rows, "intermediate|ffn"),
        ("columns per expert", layer.input_dims(first), switch.columns, "hidden|latent"),
    ):
        if found != wanted:
            raise CheckpointError(
                f"checkpoint {path}: {layer.block} has {found} {what}, but {named(config, wanted, words)}; copy both again"
            )


def check_quantization(path: Path, layer: ExpertLayer, built: BuiltModel, config: Mapping[str, Any]) -> None:
    """Raises `CheckpointError` if mlx-lm would take a layer's projections for something else than their shapes say."""
    switch, entries = built.switch(layer.number), config.get("quantization")
    if switch is None or not isinstance(entries, dict):
        return
    for projection in layer.projections:
        name, how = f"{switch.path}.{projection}", layer.quantization(projection)
        declared = entries if entries.get(name) is True else entries.get(name)
        if isinstance(declared, dict):
            wrong = how is None or any((declared.get(key) or value) != value for key, value in how.items())
        else:
            wrong = declared is False and how is not None
        if wrong:
            raise CheckpointError(f"checkpoint {path}: {name} is {how}, but config.json has {declared}; copy both again")


def check_layers(path: Path, layers: tuple[ExpertLayer, ...], built: BuiltModel) -> None:
    """Raises `CheckpointError` unless exactly the layers of the built model have experts."""
    found, wanted = {layer.number for layer in layers}, {switch.number for switch in built.switches}
    if found != wanted:
        raise CheckpointError(
            f"checkpoint {path} has experts in {len(found)} layers ({_range(found)}), but config.json has {len(wanted)} "
            f"({_range(wanted)}); copy the missing shards, or the right config.json"
        )


def _range(numbers: set[int]) -> str:
    return f"{min(numbers)} to {max(numbers)}"
