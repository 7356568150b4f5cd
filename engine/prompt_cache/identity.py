"""Identity: a digest of everything that determines the numbers in a KV cache, apart from the tokens.

A cache of another model, lossy setting, device or version would give wrong tokens or other rounding, so its file has another
key and is never loaded. The prefill chunk belongs to the key because it changes rounding in Mamba layers.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import version
from typing import Any

from engine import __version__
from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import Knobs
from engine.model.backend import backend, compute_dtype, device_name
from engine.plan.bits import BitsPlan
from engine.system.strict_json import to_json

FORMAT = 2  # raised when a file changes meaning
DIGITS = 16


def cache_key(checkpoint: Checkpoint, knobs: Knobs, bits: BitsPlan, chunk: int, **more: Any) -> str:
    """The key of prefixes of a model under its lossy knobs: 16 hexadecimal digits. It reads the model's fingerprint.

    `chunk`: prefill chunk in use, tokens. `more`: what else the numbers depend on, as JSON can express it.
    """
    lossy = {name: value for name, value in knobs.lossy.items() if name != "bits_plan"}  # its content counts
    return digest(
        {
            "format": FORMAT, "model": checkpoint.fingerprint, "lossy": lossy, "bits": bits.fingerprint,
            "prefill_chunk": chunk, "device": [backend(), device_name(), str(compute_dtype())],
            "versions": {"headrace": __version__, "mlx": version("mlx"), "mlx_lm": version("mlx-lm")}, **more,
        }
    )  # fmt: skip


def digest(parts: dict[str, Any]) -> str:
    """16 hexadecimal digits of a mapping that JSON can express."""
    return hashlib.sha256(to_json(parts, sort_keys=True).encode()).hexdigest()[:DIGITS]
