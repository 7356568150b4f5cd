"""Tiny rehearsals: stores of random weights whose layers share records."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from tiny import CONFIGS

from engine.knobs import GB
from engine.packing.random_store import RandomStore, plan_store, write_store
from engine.shapes import library
from engine.shapes.shape import Shape

ROUTING: dict[str, Any] = {"popularity": 1.0, "topic": 0.7, "topic_tokens": 40.0, "phrase": 0.5}
RECALL = (0.8, 0.9)


def shape(family: str, **sizes: int) -> Shape:
    """The shape of a tiny family."""
    name = {"kimi_k25": "kimi_k2_5"}.get(family, "olmoe_1b_7b")
    return dataclasses.replace(library.shape(name), name=family, config={**CONFIGS[family], **sizes})


def plan(family: str = "kimi_k25", distinct: int = 2) -> RandomStore:
    """The rehearsal of a tiny family with room for this number of distinct layers."""
    whole = plan_store(shape(family), 1)
    room = whole.resident_bytes + (distinct + 0.5) * whole.description.layers[0].file_bytes
    return plan_store(shape(family), room / GB)


def write(folder: Path, family: str = "kimi_k25", distinct: int = 2) -> Path:
    write_store(plan(family, distinct), folder, ROUTING, RECALL)
    return folder
