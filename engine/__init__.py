"""Headrace's streaming engine: Mixture-of-Experts models larger than memory, on MLX.

    from engine import Knobs, load
    e = load("experiments/kimi_mini/checkpoint", Knobs(cache_gb=0.02))
    print("".join(e.generate("The query planner", max_tokens=64)), e.stats)

Only attention, routers and shared experts stay in memory; routed experts are read from the checkpoint as tokens need them.
"""

from .checkpoint import Checkpoint
from .engine import Engine, load
from .errors import CheckpointError, HeadraceError, JudgeError, KnobError, ReadError
from .judge import Judge
from .knobs import Knobs
from .measurement import Measurement
from .plan import Footprint, footprint

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
    "ReadError",
    "footprint",
    "load",
]
