"""Tiny rehearsals: stores of random weights whose layers share records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import CONFIGS

from engine.knobs import GB
from engine.packing.random_store import RandomStore, plan_store, write_store

ROUTING: dict[str, Any] = {"popularity": 1.0, "topic": 0.7, "topic_tokens": 40.0, "phrase": 0.5}
RECALL = (0.8, 0.9)


def plan(family: str = "kimi_k25", distinct: int = 2) -> RandomStore:
    """The rehearsal of a tiny family with room for this number of distinct layers."""
    whole = plan_store(family, CONFIGS[family], 1)
    room = whole.resident_bytes + (distinct + 0.5) * whole.description.layers[0].file_bytes
    return plan_store(family, CONFIGS[family], room / GB)


def write(folder: Path, family: str = "kimi_k25", distinct: int = 2) -> Path:
    write_store(plan(family, distinct), folder, ROUTING, RECALL)
    return folder
