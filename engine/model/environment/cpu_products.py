"""CPU products: lets MLX's CPU backend take its products of float32 matrices from the extension.

MLX's wheel for Linux links the reference BLAS, whose products of a prefill take about ten times as long. The dynamic linker
looks for `cblas_sgemm` first in the libraries that were loaded with RTLD_GLOBAL, then in those that MLX names (dlopen(3)).
The extension has that function on x86-64 (engine/native/products), with the same bits, so only time changes. Where MLX came
first, and everywhere but on Linux, nothing changes; `headrace doctor` shows whose products are in use.

This module imports no MLX; `engine` calls it before MLX is imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

from engine.errors import HeadraceError


def offer_products() -> None:
    """Load the extension for all libraries that follow. An extension that is missing is reported by what needs it."""
    if sys.platform == "linux":
        with contextlib.suppress(HeadraceError, OSError):
            from engine.native.load import built

            ctypes.CDLL(str(built()), mode=os.RTLD_GLOBAL | os.RTLD_LAZY)
