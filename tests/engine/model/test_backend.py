"""Backend: the names and the compute type of the device that MLX uses here, and its products (engine/native/product)."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from engine.model.backend import OWN_PRODUCTS, backend, compute_dtype, device_name, peak_bytes
from engine.system.memory import peak_memory_bytes

on_cpu = mx.default_device() == mx.Device(mx.cpu)


def test_the_backend_is_that_of_the_default_device() -> None:
    assert backend() == ("cpu" if on_cpu else "metal" if mx.metal.is_available() else "cuda")


@pytest.mark.skipif(not on_cpu, reason="MLX computes on a GPU here")
def test_the_cpu_computes_in_float32_and_is_named_with_its_cores() -> None:
    assert compute_dtype() == mx.float32
    assert device_name().endswith(f"({os.cpu_count()} cores)")


def test_on_cuda_the_peak_has_the_memory_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    held = mx.zeros(1 << 20)
    mx.eval(held)
    for name, more in {"cpu": 0, "metal": 0, "cuda": mx.get_peak_memory()}.items():
        monkeypatch.setattr("engine.model.backend.backend", lambda name=name: name)
        assert abs(peak_bytes() - more - peak_memory_bytes()) < 1 << 20
    assert mx.get_peak_memory() >= held.nbytes > 1 << 20


own_products = pytest.mark.skipif(not OWN_PRODUCTS, reason="MLX's own matrix products are in use here")


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="built for Linux on x86-64")
@pytest.mark.skipif(not on_cpu, reason="MLX computes on a GPU here")
def test_linux_on_x86_64_has_our_own_products() -> None:
    assert OWN_PRODUCTS


def in_order(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The product of float32 matrices with every sum from its first term to its last."""
    out = np.zeros((len(a), b.shape[1]), np.float32)
    for left, right in zip(a.T, b, strict=True):
        out += left[:, None] * right[None, :]
    return out


SHAPES = [(1, 1, 1), (1, 64, 33), (5, 7, 200), (6, 16, 64), (7, 17, 65), (13, 48, 130), (40, 35, 3)]


@own_products
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_summed_in_order(shape: tuple[int, int, int]) -> None:
    rows, columns, depth = shape
    rng = np.random.default_rng(rows)
    a, b, c = (rng.standard_normal(s).astype(np.float32) for s in ((rows, depth), (depth, columns), (rows, columns)))
    expected = in_order(a, b)
    for left in (mx.array(a), mx.array(np.ascontiguousarray(a.T)).T):
        for right in (mx.array(b), mx.array(np.ascontiguousarray(b.T)).T):
            assert np.array_equal(np.array(left @ right), expected)
            assert np.allclose(
                np.array(mx.addmm(mx.array(c), left, right, 0.5, -2)), 0.5 * expected - 2 * c, rtol=1e-4, atol=1e-4
            )


BEFORE_AND_AFTER = """
import sys
import mlx.core as mx
from engine.native import core
mx.set_default_device(mx.cpu)
mx.random.seed(0)
def products():
    found = []
    for m, n, k in {shapes}:
        a, b, c = mx.random.normal((m, k)), mx.random.normal((k, n)), mx.random.normal((m, n))
        at, bt = mx.contiguous(a.T).T, mx.contiguous(b.T).T
        inf = mx.where(mx.random.uniform(shape=a.shape) < 0.1, float("inf"), a)
        found += [x @ y for x in (a, at, inf) for y in (b, bt)]
        factors = (1, 1), (0.3, -1.7), (2, 0)
        found += [mx.addmm(c, x, y, *both) for x in (a, at) for y in (b, bt) for both in factors]
        mx.eval(found)
    return [bytes(memoryview(x)) for x in found]
before = products()
assert core.use_products()
mx.random.seed(0)
after = products()
print(len(before), sum(x != y for x, y in zip(before, after, strict=True)))
"""


@own_products
def test_products_have_the_bits_of_the_blas_that_mlx_brings() -> None:
    """The process that compares imports only the extension, so the first products are those of MLX's BLAS."""
    code = BEFORE_AND_AFTER.replace("{shapes}", repr(SHAPES))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout.split() == [str(18 * len(SHAPES)), "0"], done.stderr
