"""Headrace's streaming engine: Mixture-of-Experts models larger than memory, on MLX.

    from engine import Knobs, load
    e = load("experiments/kimi_mini/checkpoint", Knobs(cache_gb=0.02))
    print("".join(e.generate("The query planner", max_tokens=64)), e.stats)

Attention, routers and shared experts stay in memory; routed experts are read from the checkpoint when tokens need them.
"""

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of missing models; only its tokenizers are used

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import CheckpointError, HeadraceError, JudgeError, KnobError, ReadError
from engine.knobs import Knobs
from engine.measure.judge import Judge
from engine.measure.measurement import Measurement
from engine.measure.protocol import Protocol
from engine.plan.footprint import Footprint, footprint
from engine.system.page_cache import prepare_page_cache

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Engine",
    "Footprint",
    "HeadraceError",
    "Judge",
    "JudgeError",
    "KnobError",
    "Knobs",
    "Measurement",
    "Protocol",
    "ReadError",
    "ceiling_tok_s",
    "footprint",
    "load",
    "prepare_page_cache",
]

if TYPE_CHECKING:
    from engine.engine import Engine, load
    from engine.plan.ceiling import ceiling_tok_s


def __getattr__(name: str) -> Any:
    """Import Engine, load and the ceiling on first use, since mlx-lm takes about a second to import."""
    if name == "ceiling_tok_s":
        from engine.plan import ceiling

        return ceiling.ceiling_tok_s
    if name in ("Engine", "load"):
        from engine import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
