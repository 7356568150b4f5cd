"""Headrace's streaming engine: runs Mixture-of-Experts models larger than memory, on MLX.

    from engine import Knobs, load
    e = load("experiments/kimi_mini/checkpoint", Knobs(cache_gb=0.02))
    print("".join(e.generate("The query planner", max_tokens=64)), e.stats)

Only attention, routers and shared experts stay in memory. Routed experts are read from the checkpoint when a token needs
them. Names that need MLX are imported on first use, so that results can be read without it.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"  # pyproject.toml reads it here

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # transformers serves as tokenizer only, and warns about models

import engine.model.environment.mlx_environment  # noqa: F401 - before MLX
from engine.errors import CheckpointError, HeadraceError, JudgeError, KnobError, ReadError
from engine.knobs import Knobs
from engine.measure.judge import Judge
from engine.measure.measurement import Measurement
from engine.measure.protocol import Protocol
from engine.model.environment.cpu_products import offer_products
from engine.model.environment.kernel_cache import keep_kernels
from engine.system.open_files import keep_limits_on_import

keep_limits_on_import()
keep_kernels()
offer_products()

if TYPE_CHECKING:
    from engine.checkpoint.checkpoint import Checkpoint
    from engine.engine import Engine, load
    from engine.plan.ceiling import ceiling_tok_s
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
    "__version__",
    "ceiling_tok_s",
    "footprint",
    "load",
    "prepare_page_cache",
]

_ON_FIRST_USE = {
    "Checkpoint": "engine.checkpoint.checkpoint",
    "Engine": "engine.engine",
    "Footprint": "engine.plan.footprint",
    "ceiling_tok_s": "engine.plan.ceiling",
    "footprint": "engine.plan.footprint",
    "load": "engine.engine",
    "prepare_page_cache": "engine.system.page_cache",
}


def __getattr__(name: str) -> Any:
    """A name that is imported on first use."""
    if name not in _ON_FIRST_USE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_ON_FIRST_USE[name]), name)
