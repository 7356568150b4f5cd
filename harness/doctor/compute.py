"""Compute: MLX's device, its compiled kernels, and the cost of a router's choice on the host and of copies into a slot."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any

from engine.knobs import GB

from .check import Answer, Check, Place

EXPERTS, DIMS, TOP_K = 128, 2048, 8  # a router of the size of Qwen3-30B's
ROUNDS, CHAIN = 30, 20
COPY_BYTES, SMALL_BYTES = 64 << 20, 64 << 10
START_S = 30.0  # importing MLX and the first kernels


def checks() -> list[Check]:
    """The checks of the group compute."""
    return [
        Check("compute", "device of MLX", _device, "Nothing can be computed.", START_S),
        Check(
            "compute", "compiled kernels", _kernels, "Each process compiles its kernels anew, in up to a minute.", START_S
        ),
        Check("compute", "host sync", _sync, "The cost of checking each layer is not known.", START_S),
        Check("compute", "copies into slots", _copy, "Nothing can be streamed.", START_S),
    ]


def _device(place: Place) -> Answer:
    import mlx.core as mx

    from engine.model.backend import backend, device_name
    from engine.native import core

    before = core.products()
    total = mx.sum(mx.ones((64, 64)) @ mx.ones((64, 64))).item()
    if total != 64**3:
        raise ArithmeticError(f"a product of matrices of ones has the sum {total} instead of {64**3}")
    known: dict[str, Any] = {k: v for k, v in mx.device_info(mx.default_device()).items() if isinstance(v, int | str)}
    figures = {"backend": backend(), "device": device_name(), "device_info": known}
    if backend() != "cpu":
        return Answer(f"{backend()}: {device_name()}", figures)
    own = core.products() > before
    whose = "Headrace's, with the bits of MLX's" if own else "MLX's"
    return Answer(f"cpu: {device_name()}, float32 products: {whose}", figures | {"own_products": own})


def _kernels(place: Place) -> Answer | None:
    """The folder where MLX stores the kernels that it compiles for an NVIDIA GPU; no other device needs one."""
    from engine.model.backend import backend
    from engine.model.environment.kernel_cache import VARIABLE, kernel_folder

    if backend() != "cuda":
        return None
    folder = kernel_folder()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()
    sizes = [file.stat().st_size for file in folder.rglob("*.ptx")]
    lasting = not folder.is_relative_to(tempfile.gettempdir())
    text = f"{len(sizes)} modules, {sum(sizes) / 1e6:.3g} MB, in {folder}"
    figures = {"kernel_modules": len(sizes), "kernel_mb": sum(sizes) / 1e6, "kernels_lasting": lasting}
    return Answer(text if lasting else f"{text}, which a restart may empty; set {VARIABLE} to keep them", figures)


def _sync(place: Place) -> Answer:
    """The time of a router with its choice on the host, less its time where the host does not wait."""
    import mlx.core as mx

    weights = mx.random.normal((EXPERTS, DIMS)) / DIMS
    x = mx.random.normal((1, DIMS))
    mx.eval(weights, x)

    def choice(x: Any) -> Any:
        return mx.argpartition(-(x @ weights.T), TOP_K, axis=-1)[..., :TOP_K]

    def waiting() -> float:
        begin, y = time.perf_counter(), x
        for _ in range(CHAIN):
            ids = choice(y).tolist()
            y = y + ids[0][0]
        mx.eval(y)
        return (time.perf_counter() - begin) / CHAIN

    def queued() -> float:
        begin, y = time.perf_counter(), x
        for _ in range(CHAIN):
            y = y + choice(y)[..., :1]
        mx.eval(y)
        return (time.perf_counter() - begin) / CHAIN

    waiting(), queued()
    pairs = [(waiting() * 1000, queued() * 1000) for _ in range(ROUNDS)]
    with_sync, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    costs = sorted(w - q for w, q in pairs)
    sync = max(0.0, statistics.median(costs))
    low, high = costs[ROUNDS // 4], costs[-1 - ROUNDS // 4]
    figures = {
        "sync_ms": sync, "sync_ms_quartiles": [low, high], "router_with_sync_ms": with_sync, "router_queued_ms": without
    }  # fmt: skip
    return Answer(f"{sync:.3f} ms ({low:.3f} .. {high:.3f}), after a router that takes {without:.3f} ms", figures)


def _copy(place: Place) -> Answer:
    """From memory that a read has filled into a slot, by the way that the engine uses on this device."""
    import mlx.core as mx
    import numpy as np

    from engine.cache.slots import SlotArray
    from engine.disk.cuda_copy import cuda_driver
    from engine.model.backend import backend
    from engine.native import core

    slot = SlotArray(1, (COPY_BYTES,), mx.uint8)
    into = slot.memory_bytes
    if backend() == "cuda":
        device = core.DeviceCopy(cuda_driver(), COPY_BYTES)
        device.fill(7)
        way, copy = "copy engine", device.copy
        mx.eval(mx.sum(slot.array))  # brings the pages to the device, where the engine keeps them
    else:
        way, source = "memory", np.full(COPY_BYTES, 7, np.uint8).data

        def copy(into: memoryview) -> None:  # type: ignore[misc]
            into[:] = source[: len(into)]

    def seconds(nbytes: int, rounds: int) -> float:
        taken = []
        for _ in range(rounds):
            begin = time.perf_counter()
            copy(into[:nbytes])
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken)

    seconds(COPY_BYTES, 1)
    gbps, small_us = COPY_BYTES / seconds(COPY_BYTES, 9) / GB, seconds(SMALL_BYTES, 99) * 1e6
    if mx.min(slot.array).item() != 7:
        raise OSError("MLX does not see the bytes that were copied")
    figures = {"copy_gbps": gbps, "copy_64kib_us": small_us, "copy_way": way}
    return Answer(f"{gbps:.1f} GB/s, 64 KiB in {small_us:.0f} us ({way})", figures)
