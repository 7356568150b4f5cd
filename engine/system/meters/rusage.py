"""Resource use of this process on macOS: the figures of proc_pid_rusage, of version 4.

Positions are those of <sys/resource.h> (struct rusage_info_v4), counted in 64-bit fields after the 16 bytes of ri_uuid.
Written from that header, not yet run on a Mac.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

RUSAGE_INFO_V4 = 4
FIELDS = {
    "diskio_bytesread": 16,
    "diskio_byteswritten": 17,
    "lifetime_max_phys_footprint": 28,
    "billed_energy": 31,
}
ROOM = 64  # fields; version 4 has 35 besides the uuid


def rusage(field: str, libproc: Any = None) -> int | None:
    """The figure `ri_FIELD` of this process; None where the system has none or refuses it. `libproc` replaces the library
    in tests."""
    if libproc is None:
        if sys.platform != "darwin":
            return None
        libproc = ctypes.CDLL("/usr/lib/libproc.dylib")
    info = (ctypes.c_uint64 * ROOM)()
    if libproc.proc_pid_rusage(os.getpid(), RUSAGE_INFO_V4, ctypes.byref(info)) != 0:
        return None
    return int(info[2 + FIELDS[field]])
