"""Buffer cache: the memory that MLX keeps after arrays are freed, and its limit.

MLX reuses freed buffers instead of returning them to the system. Its own limit is 33.6 MB on the CPU and nearly all memory
on a GPU. A step of decoding frees and allocates the same few megabytes again and again, so a small cache serves it; what a
cache keeps beyond that is taken from the experts. On the CPU the C library's allocator does this work already: limits of 0
and 33.6 MB gave the same times (docs/memory.md).
"""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx

from .backend import backend

LIMIT_BYTES = {"cpu": 0, "metal": 256_000_000, "cuda": 256_000_000}


def buffer_cache_bytes() -> int:
    """Return the limit of the buffer cache on this backend, bytes."""
    return LIMIT_BYTES[backend()]


def limit_buffer_cache() -> None:
    """Set the limit and return what is cached above it to the system."""
    mx.set_cache_limit(buffer_cache_bytes())
    mx.clear_cache()


def never_wire() -> None:
    """Keep mlx-lm's generation code, which the server uses too, from wiring memory in this process (docs/memory.md).

    Wired memory cannot be paged out. mlx-lm raises the limit to the most that the device recommends, which leaves a machine
    without memory for anything else and has caused kernel panics.
    """
    module: Any = importlib.import_module("mlx_lm.generate")  # the package's attribute of that name is a function
    module.maybe_set_recommended_wired_limit = lambda: None
