"""Rows of a search with a known truth, without an engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from engine import Knobs
from harness.results.columns import NAMES
from harness.results.metrics import OBJECTIVES
from harness.space.parse import space_from_config
from harness.space.space import Space

SPACE = space_from_config(
    {
        "cache_gb": {"type": "float", "low": 0.005, "high": 0.04, "log": True},
        "evict_half_life": {"type": "float", "low": 1, "high": 256, "log": True},
        "read_threads": {"type": "int", "low": 1, "high": 8},
        "read_block_kib": {"type": "ordinal", "values": [16, 32, 64, 128, 256, 1024]},
        "io_mode": {"type": "choice", "values": ["buffered", "direct"]},
        "expert_bits": {"type": "ordinal", "values": [3, 4, 6, 8]},
    },
    {},
)
LEGAL = {"cache_gb": (0.005, 0.06)}
Figures = tuple[float, float, float]


def row(trial: int, values: dict[str, Any], figures: Figures, **more: Any) -> dict[str, Any]:
    given = {"trial": trial, "run": 0, "status": "ok", "origin": "sampler", "eval_fingerprint": "j"}
    measured = dict(zip(OBJECTIVES, figures, strict=True))
    return {**dict.fromkeys(NAMES), **given, **Knobs(**values).as_dict(), **measured, **more}


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=list(NAMES))


def streamed(values: dict[str, Any], rng: np.random.Generator) -> Figures:
    """Speed rises with the cache up to its bound and beyond; half-life and io_mode have no effect. 10 % noise."""
    bits = values["expert_bits"]
    waits = (1 - values["cache_gb"] / (0.16 * bits / 8)) * bits / 8 / math.sqrt(min(values["read_threads"], 4))
    speed = 100 / (1 + 9 * waits) * math.exp(0.1 * rng.normal())
    return speed, 0.02 + values["cache_gb"], 4 + 12 * 2.0**-bits


def noise(values: dict[str, Any], rng: np.random.Generator) -> Figures:
    speed, memory, perplexity = np.exp(0.1 * rng.normal(size=3)) * (10, 1, 5)
    return speed, memory, perplexity


def searched(
    seed: int, response: Callable[..., Figures], count: int = 60, first: int = 1, space: Space = SPACE
) -> list[dict[str, Any]]:
    """Rows of trials at the anchors, then at random settings."""
    rng = np.random.default_rng(seed)
    draws = [{e.name: _draw(e, rng) for e in space.entries} for _ in range(count)]
    settings = [space.values(p) for p in [*space.anchors(), *draws][:count]]
    return [row(first + i, values, response(values, rng)) for i, values in enumerate(settings)]


def _draw(e: Any, rng: np.random.Generator) -> Any:
    if e.values:
        index = int(rng.integers(len(e.values)))
        return e.values[index] if e.type == "choice" else index
    if e.type == "int":
        return int(rng.integers(e.low, e.high + 1))
    return float(math.exp(rng.uniform(math.log(e.low), math.log(e.high))))


def trials(*points: tuple[float, float, float], **columns: object) -> pd.DataFrame:
    """A frame of rows with (tok/s, GB, perplexity) and trial numbers from 1."""
    df = pd.DataFrame(points, columns=["decode_tok_s", "peak_memory_gb", "perplexity"])
    given = {"trial": range(1, len(df) + 1), "status": "ok", "origin": "sampler", "eval_fingerprint": "a" * 16, **columns}
    return df.assign(**given).reindex(columns=list(NAMES))


# Fast and large; slow and small; balanced; beaten by the balanced one; precise.
FIVE = trials((100, 10, 8), (10, 1, 8), (80, 2, 5), (70, 2, 6), (5, 9, 4))
