"""Memory: the machine's memory, this process's peak, and the bytes it read from the disk and wrote to it.

Linux: VmHWM, which unlike `ru_maxrss` does not inherit the parent's peak through fork and exec, and /proc/self/io. macOS:
proc_pid_rusage, with the lifetime maximum of the physical footprint, which includes Metal buffers (written from
<sys/resource.h>, not yet run on a Mac).
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from typing import Any

import psutil

from .meters.control_group import memory_available, memory_limit
from .meters.rusage import rusage


def peak_memory_bytes() -> int:
    """Peak memory of this process, bytes."""
    return _macos_peak() if sys.platform == "darwin" else _linux_peak()


def memory_bytes() -> int:
    """Memory of this machine, or what the process's control groups allow if that is less, bytes."""
    try:
        total = int(psutil.virtual_memory().total)
    except (OSError, psutil.Error):  # without /proc
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total, memory_limit() or total)


def available_bytes() -> int:
    """Memory that is available now, bytes: file caches count, and the process's control groups limit it."""
    try:
        available = int(psutil.virtual_memory().available)
    except (OSError, psutil.Error):
        available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    within = memory_available()
    return available if within is None else min(available, within)


def disk_bytes_read() -> int | None:
    """Bytes that this process has read from the disk so far, all threads; None if the system does not report it."""
    return rusage("diskio_bytesread") if sys.platform == "darwin" else _linux_io("read_bytes")


def disk_bytes_written() -> int | None:
    """Bytes that this process has had written to the disk so far, all threads; None if the system does not report it. Pages
    that the system swaps out are not among them."""
    return rusage("diskio_byteswritten") if sys.platform == "darwin" else _linux_io("write_bytes")


def page_cache_share(disk_bytes: int | None, requested_bytes: int) -> float | None:
    """Share of the requested bytes that did not come from the disk; None if it is not known or nothing was requested.

    At least 0, although readahead can fetch more than was requested.
    """
    return None if disk_bytes is None or not requested_bytes else max(0.0, 1 - disk_bytes / requested_bytes)


def _linux_peak(status: str = "/proc/self/status") -> int:
    """VmHWM; where /proc is hidden, `ru_maxrss`, which is at least the parent's memory at the time of the fork."""
    with contextlib.suppress(OSError), open(status) as f:
        for line in f:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _linux_io(name: str, io: str = "/proc/self/io") -> int | None:
    try:
        with open(io) as f:
            return next((int(line.split()[1]) for line in f if line.startswith(f"{name}:")), None)
    except OSError:  # a kernel without task accounting, or a sandbox
        return None


def _macos_peak(libproc: Any = None) -> int:
    peak = rusage("lifetime_max_phys_footprint", libproc)
    if peak is None:
        raise RuntimeError("proc_pid_rusage gives no peak memory")
    return peak
