"""Rosetta: whether this process is x86 code that Apple silicon translates.

Such a process has pages of 4 KiB on a kernel with 16 KiB, so no read of it goes past the page cache, and MLX has no Metal
backend for it. Not yet run on a Mac.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from engine.errors import HeadraceError

NAME = b"sysctl.proc_translated"


def translated(libc: Any = None) -> bool | None:
    """Whether Rosetta translates this process; None where the system does not know the question. `libc` replaces the
    library in tests."""
    if libc is None:
        if sys.platform != "darwin":
            return None
        libc = ctypes.CDLL(None)
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    if libc.sysctlbyname(NAME, ctypes.byref(value), ctypes.byref(size), None, ctypes.c_size_t(0)) != 0:
        return None  # a Mac with an Intel processor
    return bool(value.value)


def refuse_translated(libc: Any = None) -> None:
    """Raise `HeadraceError` in a process that Rosetta translates."""
    if translated(libc):
        raise HeadraceError(
            "this Python is for Intel processors and runs translated by Rosetta (sysctl.proc_translated=1), where reads "
            "cannot go past the page cache and MLX has no GPU; install an arm64 Python, and headrace in it"
        )
