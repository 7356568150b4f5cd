"""A small space, a search over it, and the row that a proposal would leave."""

from __future__ import annotations

from typing import Any

from engine import Knobs
from harness.propose.ask_tell import Proposal, Search
from harness.results.columns import NAMES
from harness.results.metrics import OBJECTIVES
from harness.space.parse import space_from_config
from harness.space.space import Space

CONFIG = {
    "cache_gb": {"type": "float", "low": 0.01, "high": 0.08},
    "read_threads": {"type": "int", "low": 1, "high": 8},
    "expert_bits": {"type": "ordinal", "values": [3, 4, 8, None]},
}


def space(**changes: Any) -> Space:
    return space_from_config({**CONFIG, **changes}, {})


def search(**values: Any) -> Search:
    return Search(**{"objectives": OBJECTIVES, "sampler": "tpe", "limit_gb": 1.0, **values})


def row_of(p: Proposal, **values: Any) -> dict[str, Any]:
    knobs = Knobs.from_mapping(p.values).as_dict()
    speed = 100 * (knobs["cache_gb"] or 0.1) * knobs["read_threads"]
    given = {"trial": p.trial, "run": 0, "origin": p.origin, "status": "ok", "decode_tok_s": speed, "peak_memory_gb": 0.5,
             "perplexity": 17.0, "seen_peak_gb": 0.5, "predicted_peak_gb": 0.4}  # fmt: skip
    return {**dict.fromkeys(NAMES), **knobs, **given, **values}
