"""Backend: the names and the compute type of the device that MLX uses here."""

from __future__ import annotations

import os

import mlx.core as mx
import pytest

from engine.model.backend import backend, compute_dtype, device_name

on_cpu = mx.default_device() == mx.Device(mx.cpu)


def test_the_backend_is_that_of_the_default_device() -> None:
    assert backend() == ("cpu" if on_cpu else "metal" if mx.metal.is_available() else "cuda")


@pytest.mark.skipif(not on_cpu, reason="MLX computes on a GPU here")
def test_the_cpu_computes_in_float32_and_is_named_with_its_cores() -> None:
    assert compute_dtype() == mx.float32
    assert device_name().endswith(f"({os.cpu_count()} cores)")
