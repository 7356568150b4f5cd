"""CUDA copies: the driver that brings bytes from the host into slots on the GPU.

MLX's unified memory on CUDA is managed memory: a write by a reader thread moves the slot's pages to the host, and the next
computation on the GPU moves them back, 4 KiB to 2 MiB at a time. The copy engine instead writes from page-locked memory to
the pages where they are. The driver's library provides it without a build dependency (`engine/native/reading/device_copy`).
"""

from __future__ import annotations

import mlx.core as mx

DRIVER = "libcuda.so.1"


def cuda_driver() -> str:
    """The driver's shared library, after MLX has made the device's primary context."""
    mx.eval(mx.zeros(1))
    return DRIVER
