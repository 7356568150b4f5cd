"""Backend: the names and the compute type of the device that MLX uses here."""

from __future__ import annotations

import os
from pathlib import Path

import mlx.core as mx
import pytest

from engine.model.backend import backend, compiles_first, compute_dtype, device_name, peak_bytes
from engine.model.environment.kernel_cache import VARIABLE
from engine.system.memory import peak_memory_bytes

on_cpu = mx.default_device() == mx.Device(mx.cpu)


def test_the_backend_is_that_of_the_default_device() -> None:
    assert backend() == ("cpu" if on_cpu else "metal" if mx.metal.is_available() else "cuda")


@pytest.mark.skipif(not on_cpu, reason="MLX computes on a GPU here")
def test_the_cpu_computes_in_float32_and_is_named_with_its_cores() -> None:
    assert compute_dtype() == mx.float32
    assert device_name().endswith(f"({os.cpu_count()} cores)")


def test_a_user_who_waits_for_kernels_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    for name, told in {"cpu": False, "metal": False, "cuda": True}.items():
        monkeypatch.setattr("engine.model.backend.backend", lambda name=name: name)
        assert compiles_first().startswith("MLX compiles its kernels") == told
    (tmp_path / "kernel.ptx").touch()
    assert not compiles_first()


def test_on_cuda_the_peak_has_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    held = mx.zeros(1 << 20)
    mx.eval(held)
    for name, more in {"cpu": 0, "metal": 0, "cuda": mx.get_peak_memory()}.items():
        monkeypatch.setattr("engine.model.backend.backend", lambda name=name: name)
        assert abs(peak_bytes() - more - peak_memory_bytes()) < 1 << 20
    assert mx.get_peak_memory() >= held.nbytes > 1 << 20
