"""Processes: identify one across restarts, and end a process with all its descendants."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import psutil

POLL_S = 0.02
LAST_WAIT_S = 10.0  # after SIGKILL: a process in a system call on a dead disk does not end


def created(pid: int) -> float | None:
    """Start time of a process in seconds, which identifies it together with its id. None if it does not exist.

    Counted from the machine's start on Linux, because the wall clock may be set meanwhile; since 1970 elsewhere.
    """
    try:
        if sys.platform == "linux":
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # the name may contain blanks
            return int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return psutil.Process(pid).create_time()
    except (OSError, psutil.Error):
        return None


def alive(pid: int, created_s: float) -> bool:
    """Whether the process `pid` with the start time `created_s` (from `created`) still runs. A zombie does not."""
    if created(pid) != created_s:
        return False
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def end_group(pid: int, grace_s: float = 2.0) -> bool:
    """End the process group that `pid` leads and all descendants of `pid`, including those that left the group.

    Sends SIGTERM, then SIGKILL after `grace_s`. Returns True when none of them runs any more, and False if one still runs
    ten seconds after SIGKILL. The caller must wait for `pid` itself. Other members that became children of this process
    (which may be the first of a container) are reaped here.
    """
    family: set[psutil.Process] = set()
    try:
        _family(pid, family)
    except (OSError, IndexError, psutil.Error):  # the system hides its processes
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        return True
    for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, LAST_WAIT_S)):
        signalled: set[psutil.Process] = set()
        deadline = time.monotonic() + patience
        while True:
            family |= _family(pid, family)
            living = {p for p in family if _runs(p)}
            for process in living - signalled:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
            signalled |= living
            if not living or time.monotonic() > deadline:
                break
            time.sleep(POLL_S)
        if not living:
            break
    for process in family:
        if process.pid != pid:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process.pid, os.WNOHANG)
    return not living


def _family(pid: int, known: set[psutil.Process]) -> set[psutil.Process]:
    """The members of the group, and the descendants of `pid` and of the processes in `known`."""
    pids = {p.pid for p in known} | {pid}
    parents = {p: p.info["ppid"] for p in psutil.process_iter(["ppid"])}
    family = {p for p in parents if p.pid == pid or _group(p.pid) == pid}
    while children := {p for p in parents.keys() - family if parents[p] in pids | {m.pid for m in family}}:
        family |= children
    return family


def _group(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False
