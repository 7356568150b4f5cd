"""Processes of ours: who is alive, and how a run's whole family is ended, whatever it ignores or wherever it hides."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import psutil

POLL_S = 0.02
LAST_WAIT_S = 10.0  # after SIGKILL: a process inside a system call of a dead disk does not end


def created(pid: int) -> float | None:
    """When a process started, in seconds: with its id it identifies the process. None if there is none.

    Counted from the machine's start on Linux, for the wall clock may be set while it lives; since 1970 elsewhere.
    """
    try:
        if sys.platform == "linux":
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            return int(fields[19]) / os.sysconf("SC_CLK_TCK")  # starttime; its command may hold blanks and brackets
        return psutil.Process(pid).create_time()
    except (OSError, psutil.Error):
        return None


def alive(pid: int, created_s: float) -> bool:
    """Whether the process `pid` that started at `created_s`, as `created` said, still runs. A zombie does not."""
    if created(pid) != created_s:
        return False
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def end_group(pid: int, grace_s: float = 2.0) -> bool:
    """End the process group that `pid` leads and all its descendants, also those that left the group.

    SIGTERM first, SIGKILL after `grace_s`. Returns when none of them runs, True; False if one outlives SIGKILL by
    ten seconds. The exit status of `pid` is left to its parent, which is to wait for it; others that became children of
    this process (it may be a container's first) are collected here.
    """
    family: set[psutil.Process] = set()
    for number, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, LAST_WAIT_S)):
        told: set[psutil.Process] = set()
        deadline = time.monotonic() + patience
        while True:
            family |= _family(pid, family)
            living = {p for p in family if _runs(p)}
            for process in living - told:
                with contextlib.suppress(psutil.Error):
                    process.send_signal(number)
            told |= living
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
    """The members of the group, and the descendants of `pid` and of those already known."""
    pids = {p.pid for p in known} | {pid}
    parents = {p: p.info["ppid"] for p in psutil.process_iter(["ppid"])}
    family = {p for p in parents if p.pid == pid or _group(p.pid) == pid}
    while found := {p for p in parents.keys() - family if parents[p] in pids | {m.pid for m in family}}:
        family |= found
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
