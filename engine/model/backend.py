"""Backend: the device MLX computes on, and the types it stores and computes in."""

from __future__ import annotations

import os

import mlx.core as mx

from engine.model.environment.kernel_cache import kernels
from engine.system.memory import memory_bytes, peak_memory_bytes

STORED = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16, "U32": mx.uint32, "I32": mx.int32, "U8": mx.uint8}


def backend() -> str:
    """Return the backend of MLX's default device: cpu, metal or cuda."""
    if mx.default_device() == mx.Device(mx.cpu):
        return "cpu"
    return "metal" if mx.metal.is_available() else "cuda"


def compiles_first() -> str:
    """One line for a user who waits while MLX on CUDA compiles its kernels; empty if it has compiled some before, and on
    another backend."""
    if backend() != "cuda" or kernels():
        return ""
    return "MLX compiles its kernels for this GPU first; this takes some minutes, once"


def peak_bytes(mlx_peak: int | None = None) -> int:
    """Peak memory of this process so far, bytes. On CUDA with MLX's allocations: the system does not count a device's memory
    as that of a process. `mlx_peak`: theirs, if MLX's own record of it was reset since."""
    return peak_memory_bytes() + (0 if backend() != "cuda" else mx.get_peak_memory() if mlx_peak is None else mlx_peak)


def device_name() -> str:
    """Return the GPU's name, or the processor's with its core count, such as `AMD EPYC 7B13 (2 cores)`."""
    name = str(mx.device_info(mx.default_device())["device_name"])
    return f"{name} ({os.cpu_count()} cores)" if backend() == "cpu" else name


def usable_memory_bytes() -> int:
    """Return the memory that a run may use, bytes: the machine's, or what the control groups allow, or on a GPU what the
    device has or recommends; the least of them."""
    return min(memory_bytes(), gpu_memory_bytes() or memory_bytes())


def gpu_memory_bytes() -> int | None:
    """Return the memory that the GPU recommends to use, or has, bytes; None without a GPU, or if it reports neither."""
    if backend() == "cpu":
        return None
    known = mx.device_info(mx.default_device())
    limits = (known.get(name) for name in ("max_recommended_working_set_size", "total_memory"))
    return min((int(limit) for limit in limits if limit), default=None)


def compute_dtype() -> mx.Dtype | None:
    """Return the type that floats are widened to: float32 on the CPU, None (as stored) on a GPU.

    MLX's CPU kernels accumulate a narrow type in that type, which loses precision.
    """
    return mx.float32 if mx.default_device() == mx.Device(mx.cpu) else None
