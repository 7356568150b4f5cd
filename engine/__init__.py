"""Headrace's streaming engine: Mixture-of-Experts models larger than memory, on MLX.

    from engine import Knobs, load
    e = load("experiments/kimi_mini/checkpoint", Knobs(cache_gb=0.02))
    print("".join(e.generate("The query planner", max_tokens=64)), e.stats)

Only attention, routers and shared experts stay in memory; routed experts are read from the checkpoint as tokens need them.
"""

from .errors import CheckpointError, HeadraceError, JudgeError, KnobError, ReadError
from .judge import Judge
from .knobs import Knobs
from .measurement import Measurement

__all__ = [
    "CheckpointError",
    "HeadraceError",
    "Judge",
    "JudgeError",
    "KnobError",
    "Knobs",
    "Measurement",
    "ReadError",
]
