"""Headrace's streaming engine: Mixture-of-Experts models larger than memory, on MLX.

    from engine import Knobs, load
    e = load("experiments/kimi_mini/checkpoint", Knobs(cache_gb=0.02))
    print("".join(e.generate("The query planner", max_tokens=64)), e.stats)

Only attention, routers and shared experts stay in memory; routed experts are read from the checkpoint as tokens need them.
"""

import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # only its tokenizers are used; it warns of missing models

from .checkpoint import Checkpoint
from .errors import CheckpointError, HeadraceError, JudgeError, KnobError, ReadError
from .judge import Judge
from .knobs import Knobs
from .measurement import Measurement
from .page_cache import prepare_page_cache
from .plan import Footprint, footprint
from .protocol import Protocol

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
    from .ceiling import ceiling_tok_s
    from .engine import Engine, load


def __getattr__(name: str) -> Any:
    """Engine, load and the ceiling on first use: mlx-lm takes a second to import; knobs, judges and sizes do not need it."""
    if name == "ceiling_tok_s":
        from . import ceiling

        return ceiling.ceiling_tok_s
    if name in ("Engine", "load"):
        from . import engine

        return getattr(engine, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
