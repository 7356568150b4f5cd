"""bench products: products of float32 matrices by the extension beside those of MLX's own BLAS, with the same operands.

Both are called directly (cblas_sgemm), on one core, in turns. Their results must be equal to the last bit. NumPy's product
of the same operands is the ceiling: it has fused multiplications, sums in any order, and all cores.
"""

from __future__ import annotations

import argparse
import ctypes
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from engine.cli.arguments.options import positive
from engine.errors import HeadraceError
from engine.native.load import built
from engine.system.strict_json import to_json

from ..contender import Contender, in_turns, ratios, spread

SHAPES = ((150, 256, 256), (512, 1024, 1024), (2048, 1024, 1024))  # rows, columns of the result; terms of a sum
ROWS, PLAIN, TRANSPOSED = 101, 111, 112  # cblas.h
LEAST_S = 0.05  # of a turn
Sgemm = Callable[[np.ndarray, np.ndarray, np.ndarray], None]  # a [m, k], b [k, n], or [n, k] if transposed; result [m, n]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    text = "turns of each contender (default: %(default)s)"
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help=text)


def run(args: argparse.Namespace) -> None:
    """Compare products of float32 matrices with those of MLX's own BLAS (Linux, x86-64)."""
    print(to_json(bench_products(args.rounds)))


def bench_products(rounds: int) -> dict[str, Any]:
    """Print and return the speeds of each shape, in 10^9 multiplications and additions a second, and whether all bits are
    equal. Raises `HeadraceError` where the extension or MLX has no such function."""
    own, reference = libraries()
    rows = [_row(*sizes, transposed, own, reference, rounds) for sizes in SHAPES for transposed in (False, True)]
    print("10^9 multiplications and additions a second, medians (quartiles); MLX's and the extension's on one core")
    print(f"{'product':30}{'MLX':>8}{'extension':>12}  {'ratio':20}{'NumPy, all cores':>18}  bits")
    for row in rows:
        name = f"{row['m']} x {row['k']} x {row['n']}" + (" transposed" if row["transposed"] else "")
        ratio = "{:.2f} ({:.2f}..{:.2f})".format(*row["speed_over_reference"])
        values = f"{row['reference_gmac_s'][1]:>8.3g}{row['gmac_s'][1]:>12.3g}  {ratio:20}{row['numpy_gmac_s'][1]:>18.3g}"
        print(f"{name:30}{values}  {'equal' if row['equal'] else 'NOT EQUAL'}")
    return {"bench": "products", "rounds": rounds, "rows": rows}


def _row(m: int, n: int, k: int, transposed: bool, own: Path, reference: Path, rounds: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(size, np.float32) for size in ((m, k), (n, k) if transposed else (k, n)))
    results = [np.empty((m, n), np.float32) for _ in range(3)]

    def by_numpy(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        np.matmul(a, b.T if transposed else b, out=out)

    products = sgemm_of(own, transposed), sgemm_of(reference, transposed), by_numpy
    sides = [
        Contender(name, _turn(product, a, b, out, m * n * k))
        for name, product, out in zip(("extension", "MLX", "NumPy"), products, results, strict=True)
    ]
    in_turns(sides, rounds)
    return {
        "m": m, "n": n, "k": k, "transposed": transposed, "gmac_s": spread(sides[0].figures),
        "reference_gmac_s": spread(sides[1].figures), "numpy_gmac_s": spread(sides[2].figures),
        "speed_over_reference": ratios(sides[0], sides[1]), "equal": results[0].tobytes() == results[1].tobytes(),
    }  # fmt: skip


def _turn(product: Sgemm, a: np.ndarray, b: np.ndarray, out: np.ndarray, macs: int) -> Callable[[], float]:
    begin = time.perf_counter()
    product(a, b, out)  # the first, which touches the memory
    repeats = max(1, math.ceil(LEAST_S / (time.perf_counter() - begin)))

    def turn() -> float:
        begin = time.perf_counter()
        for _ in range(repeats):
            product(a, b, out)
        return macs * repeats / (time.perf_counter() - begin) / 1e9

    return turn


def sgemm_of(library: Path, transposed: bool) -> Sgemm:
    """The cblas_sgemm of a library for matrices row by row, of which the second may be given transposed."""
    function = ctypes.CDLL(str(library)).cblas_sgemm
    one, zero, pointer = ctypes.c_float(1), ctypes.c_float(0), ctypes.c_void_p

    def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
        function(
            ROWS, PLAIN, TRANSPOSED if transposed else PLAIN, *out.shape, a.shape[1], one,
            pointer(a.ctypes.data), a.shape[1], pointer(b.ctypes.data), b.shape[1], zero,
            pointer(out.ctypes.data), out.shape[1],
        )  # fmt: skip

    return product


def libraries() -> tuple[Path, Path]:
    """The extension, and the BLAS that MLX's wheel brings. Raises `HeadraceError` where either has no cblas_sgemm."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise HeadraceError(
            f"bench products compares functions of Linux on x86-64; this is {sys.platform} on {platform.machine()}"
        )
    import mlx

    found = sorted(Path(next(iter(mlx.__path__))).parent.glob("mlx_cpu.libs/libblas*"))
    if not found:
        raise HeadraceError("MLX brings no BLAS of its own here; bench products needs its wheel: pip install 'mlx[cpu]'")
    return built(), found[0]
