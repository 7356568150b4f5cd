"""High-water marks of this process, as the system counts them.

Linux: VmHWM, which unlike `ru_maxrss` does not inherit the parent's peak through fork and exec. macOS: the lifetime
maximum of the physical footprint, which includes Metal buffers (written from <sys/resource.h>, not yet run on a Mac).
"""

from __future__ import annotations

import ctypes
import os
import sys

RUSAGE_INFO_V4 = 4
FOOTPRINT_FIELD = 28  # ri_lifetime_max_phys_footprint: the 29th 64-bit field after the 16 bytes of ri_uuid


def peak_memory_bytes() -> int:
    """The most memory this process ever had, bytes."""
    return _macos_peak() if sys.platform == "darwin" else _linux_peak()


def _linux_peak(status: str = "/proc/self/status") -> int:
    with open(status) as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"{status} has no VmHWM")


def _macos_peak(libproc: ctypes.CDLL | None = None) -> int:
    libproc = libproc or ctypes.CDLL("/usr/lib/libproc.dylib")
    info = (ctypes.c_uint64 * 64)()
    if libproc.proc_pid_rusage(os.getpid(), RUSAGE_INFO_V4, ctypes.byref(info)) != 0:
        raise RuntimeError("proc_pid_rusage failed")
    return int(info[2 + FOOTPRINT_FIELD])
