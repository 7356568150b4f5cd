"""CUDA: bytes from the host into slots that live on the GPU.

MLX's unified memory on CUDA is managed memory: when a reader thread writes into a slot, the driver first moves the slot's
pages to the host, and the GPU moves them back when it next computes, 4 KiB to 2 MiB at a time. Copying from a staging
buffer with the copy engine writes to the pages where they are. The driver's own library does that without a build
dependency (CUDA Driver API: cuMemcpyHtoD, cuMemAdvise; addresses of managed memory are valid device addresses).
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any

import mlx.core as mx
import numpy as np

from .errors import HeadraceError


class DeviceCopy:
    """`copy(into, source)` brings host bytes into managed memory without moving its pages; any thread may call it."""

    def __init__(self) -> None:
        mx.eval(mx.zeros(1))  # MLX makes the device's primary context
        self._driver: Any = ctypes.CDLL("libcuda.so.1")
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._check(self._driver.cuInit(0), "cuInit")
        self._check(self._driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
        self._check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device), "cuDevicePrimaryCtxRetain")
        self._thread = threading.local()

    def __call__(self, into: memoryview, source: memoryview) -> None:
        """Copy `source` (host) to `into` (a view of an MLX array); both are as long. Returns when it is there."""
        stream = getattr(self._thread, "stream", None)
        if stream is None:
            stream = self._thread.stream = ctypes.c_void_p()
            self._check(self._driver.cuCtxSetCurrent(self._context), "cuCtxSetCurrent")
            self._check(self._driver.cuStreamCreate(ctypes.byref(stream), 1), "cuStreamCreate")
        target, origin = (ctypes.c_uint64(_address(view)) for view in (into, source))
        self._check(self._driver.cuMemcpyAsync(target, origin, ctypes.c_size_t(len(into)), stream), "cuMemcpyAsync")
        self._check(self._driver.cuStreamSynchronize(stream), "cuStreamSynchronize")

    def _check(self, code: int, what: str) -> None:
        if code:
            raise HeadraceError(f"CUDA: {what} failed with code {code}; restart the process")


def _address(view: memoryview) -> int:
    return int(np.frombuffer(view, np.uint8).ctypes.data)
