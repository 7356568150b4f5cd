"""CUDA copies, with a driver that only records: the order of the calls, and an error code as one line."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from engine.disk import cuda_copy
from engine.errors import HeadraceError


class Driver:
    """Stands for libcuda: every function records its name and returns `codes.get(name, 0)`."""

    def __init__(self, **codes: int) -> None:
        self.calls: list[str] = []
        self._codes = codes

    def __getattr__(self, name: str) -> Any:
        def call(*_: Any) -> int:
            self.calls.append(name)
            return self._codes.get(name, 0)

        self.__dict__[name] = call
        return call


def test_staging_and_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    copy = cuda_copy.DeviceCopy()
    memory = copy.staging(4096)
    copy(memoryview(bytearray(16)), memory[:16])
    assert len(memory) == 4096
    assert driver.calls[:3] == ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]
    assert driver.calls[3:] == [
        "cuCtxSetCurrent", "cuStreamCreate", "cuMemHostRegister_v2", "cuMemcpyAsync", "cuStreamSynchronize"
    ]  # fmt: skip


def test_an_error_names_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(cuInit=999))
    with pytest.raises(HeadraceError, match="CUDA: cuInit failed with code 999; restart the process"):
        cuda_copy.DeviceCopy()
