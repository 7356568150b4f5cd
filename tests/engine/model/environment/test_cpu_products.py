"""CPU products: MLX takes its float32 products from the extension if `engine` was imported first, with the same bits."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from engine.model.environment import cpu_products

PRODUCTS = """
import mlx.core as mx
import numpy as np
from engine.native import core

random = np.random.default_rng(1)
for shape, other in [((1, 70), (70, 33)), ((40, 70), (70, 130)), ((3, 9, 16), (3, 16, 5))]:
    a, b = (mx.array(random.standard_normal(s).astype(np.float32)) for s in (shape, other))
    across = mx.contiguous(b.swapaxes(-1, -2)).swapaxes(-1, -2)
    found = [a @ b, a @ across, mx.addmm(a @ b, a, across)]
    print([np.array(one).tobytes().hex() for one in found])
print("own", core.products())
"""


def products(first: str) -> tuple[list[str], int]:
    """What a process computes that imports `first` before MLX, and how many products the extension did."""
    command = [sys.executable, "-c", f"import {first}\nimport engine\n{PRODUCTS}"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    own = next(line for line in lines if line.startswith("own"))
    return lines[:3], int(own.split()[1])


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="the function is for Linux on x86-64")
def test_the_extension_multiplies_if_engine_comes_first() -> None:
    (found, own), (expected, others) = products("engine"), products("mlx.core")
    assert (own > 0, others) == (True, 0)
    assert found == expected, "its bits are those of MLX's BLAS"


def test_nothing_is_offered_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(cpu_products.ctypes, "CDLL")
    cpu_products.offer_products()


def test_a_missing_extension_is_left_to_its_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("HEADRACE_NATIVE", "/nowhere/_core.abi3.so")
    cpu_products.offer_products()
