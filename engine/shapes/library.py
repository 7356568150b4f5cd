"""Library: the shapes of published models, one JSON file each in `models/`.

A file has the fields of the model's config.json that mlx-lm reads, the formats in which it is published, its published
number of parameters, published sizes of checkpoints, and where all of this was found.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError, did_you_mean
from engine.system.strict_json import from_json

from .formats import PUBLISHED
from .shape import PublishedCheckpoint, Shape, Source

FOLDER = Path(__file__).parent / "models"
BILLION = 1e9


@functools.cache
def names() -> tuple[str, ...]:
    """The names of all shapes, in alphabetical order."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.json")))


def shapes() -> list[Shape]:
    """All shapes, in the order of their names."""
    return [shape(name) for name in names()]


@functools.cache
def shape(name: str) -> Shape:
    """The shape of that name. Raises `HeadraceError` for an unknown one."""
    if name not in names():
        raise HeadraceError(f"shape {name} is unknown; {did_you_mean(name, [*names()])} (python -m engine shapes lists all)")
    return from_dict(name, from_json((FOLDER / f"{name}.json").read_text(encoding="utf-8")))


def from_dict(name: str, content: dict[str, Any]) -> Shape:
    """The shape that the content of a file describes."""
    active = content.get("active_billion")
    billion = content["parameters"]["billion"]
    return Shape(
        name=name,
        title=content["title"],
        config=content["config"],
        experts_format=PUBLISHED[content["published"]["experts"]],
        rest_format=PUBLISHED[content["published"]["rest"]],
        published_parameters=None if billion is None else billion * BILLION,
        parameters_source=content["parameters"]["source"],
        checkpoints=tuple(
            PublishedCheckpoint(c["name"], c["bits"], c["group_size"], c["bytes"], c["source"])
            for c in content["checkpoints"]
        ),
        source=Source(**content["source"]),
        active_parameters=None if active is None else active * BILLION,
    )
