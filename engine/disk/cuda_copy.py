"""CUDA copies: bytes from the host into slots on the GPU.

MLX's unified memory on CUDA is managed memory: a write by a reader thread moves the slot's pages to the host, and the next
computation on the GPU moves them back, 4 KiB to 2 MiB at a time. The copy engine instead writes from a staging buffer to the
pages where they are. The driver's library provides it without a build dependency (CUDA Driver API: cuMemcpyAsync,
cuMemHostRegister; addresses of managed memory are valid device addresses).
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from typing import Any

import mlx.core as mx

from engine.errors import HeadraceError

from .direct import address

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no implicit synchronization with MLX's streams


class DeviceCopy:
    """A `reader.Delivery` into managed memory that leaves its pages on the GPU."""

    def __init__(self) -> None:
        mx.eval(mx.zeros(1))  # makes MLX create the device's primary context
        self._driver: Any = ctypes.CDLL("libcuda.so.1")
        self._driver.cuMemcpyAsync.argtypes = (ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p)
        self._driver.cuStreamSynchronize.argtypes = (ctypes.c_void_p,)
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._check(self._driver.cuInit(0), "cuInit")
        self._check(self._driver.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
        self._check(self._driver.cuDevicePrimaryCtxRetain(ctypes.byref(self._context), device), "cuDevicePrimaryCtxRetain")
        self._thread = threading.local()

    def staging(self, nbytes: int) -> memoryview:
        """Page-locked memory for the calling thread, which the copy engine reads directly."""
        stream = ctypes.c_void_p()
        self._check(self._driver.cuCtxSetCurrent(self._context), "cuCtxSetCurrent")
        self._check(self._driver.cuStreamCreate(ctypes.byref(stream), NON_BLOCKING), "cuStreamCreate")
        self._thread.stream = stream
        memory = memoryview(mmap.mmap(-1, nbytes))
        at = ctypes.c_void_p(address(memory))
        self._check(self._driver.cuMemHostRegister_v2(at, ctypes.c_size_t(nbytes), 0), "cuMemHostRegister")
        self._thread.staging = _Staging(memory, self._driver, at)
        return memory

    def __call__(self, into: memoryview, source: memoryview) -> None:
        stream = self._thread.stream
        self._check(self._driver.cuMemcpyAsync(address(into), address(source), len(into), stream), "cuMemcpyAsync")
        self._check(self._driver.cuStreamSynchronize(stream), "cuStreamSynchronize")

    def _check(self, code: int, what: str) -> None:
        if code:
            raise HeadraceError(f"CUDA: {what} failed with code {code}; restart the process")


class _Staging:
    """Page-locked memory of one thread, released when the thread ends."""

    def __init__(self, memory: memoryview, driver: Any, address: ctypes.c_void_p) -> None:
        self._memory, self._driver, self._address = memory, driver, address

    def __del__(self) -> None:
        self._driver.cuMemHostUnregister(self._address)
