"""Thermal pressure of macOS: the level at which the system slows down the machine, finer than `thermalState`.

The notification `com.apple.system.thermalpressurelevel` carries it as its state; any process may read it with notify(3),
without a run loop. Levels are those of macOS in <libkern/OSThermalNotification.h>. Not yet run on a Mac.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

KEY = b"com.apple.system.thermalpressurelevel"
LEVELS = ("nominal", "moderate", "heavy", "trapping", "sleeping")  # from 0
STATUS_OK = 0  # NOTIFY_STATUS_OK of <notify.h>


def thermal_pressure(libc: Any = None) -> str | None:
    """The current level, one of `LEVELS`; None where the system does not report it. `libc` replaces the library in tests."""
    if libc is None:
        if sys.platform != "darwin":
            return None
        libc = ctypes.CDLL(None)
    if not all(hasattr(libc, name) for name in ("notify_register_check", "notify_get_state", "notify_cancel")):
        return None
    token, state = ctypes.c_int(0), ctypes.c_uint64(0)
    if libc.notify_register_check(KEY, ctypes.byref(token)) != STATUS_OK:
        return None
    try:
        if libc.notify_get_state(token, ctypes.byref(state)) != STATUS_OK:
            return None
    finally:
        libc.notify_cancel(token)
    return LEVELS[state.value] if state.value < len(LEVELS) else None
