"""What MLX computes on."""

from __future__ import annotations

import os

import mlx.core as mx


def backend() -> str:
    """Where MLX computes: cpu, metal or cuda."""
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def device_name() -> str:
    """The GPU's name, or the processor's with its cores, such as `AMD EPYC 7B13 (2 cores)`."""
    name = str(mx.device_info(mx.default_device())["device_name"])
    return f"{name} ({os.cpu_count()} cores)" if backend() == "cpu" else name
