"""Known passes: the predicted memory of passes, kept in the user's cache folder, because each run of a model needs it.

A prediction opens mlx-lm's module, which takes 12 s for a model of 1 T parameters. It depends on nothing but the model's
configuration and tensors, the versions of MLX and mlx-lm, and the arithmetic of the backend.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError
from engine.model.backend import backend, compute_dtype
from engine.system.strict_json import from_json, to_json
from engine.system.user_cache import cached_file, store_in_cache

FORMAT = 2  # raised when the prediction changes


def pass_file(key: Sequence[Any]) -> Path:
    """The file of the pass that `key` identifies: the digest of the headers, and what the prediction was asked for."""
    identity = [FORMAT, *key, backend(), str(compute_dtype()), version("mlx"), version("mlx-lm")]
    return cached_file(f"pass-{hashlib.sha256(to_json(identity).encode()).hexdigest()[:16]}.json")


def known_pass(file: Path, names: Sequence[str]) -> dict[str, int] | None:
    """The bytes in a pass's file by name; None if there is no such file or it lacks one of `names`."""
    try:
        content = from_json(file.read_text(encoding="utf-8"))
        return {name: int(content[name]) for name in names}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def store_pass(file: Path, memory: dict[str, int]) -> None:
    """Keep a prediction. A cache folder that cannot be written costs time only."""
    with contextlib.suppress(HeadraceError):
        store_in_cache(file, to_json(memory).encode())
