"""Processes: a process is ended with all its descendants, and identified by id and start time. Real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import wait_for

from harness.machine.processes import alive, created, end_group

STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 2:
    subprocess.Popen([sys.executable, __file__, sys.argv[1]], start_new_session=sys.argv[2] == "away")
with open(sys.argv[1], "a") as f:
    f.write(f"{os.getpid()}\\n")
time.sleep(60)
"""


def family(tmp_path: Path, where: str) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    """A child that leads a process group and its own child, which stays in the group or leaves it; both ignore SIGTERM."""
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    pids = tmp_path / "pids"
    child = subprocess.Popen([sys.executable, str(tmp_path / "stubborn.py"), str(pids), where], start_new_session=True)
    wait_for(lambda: pids.exists() and pids.read_text().count("\n") == 2)
    return child, [psutil.Process(int(pid)) for pid in pids.read_text().split()]


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_grandchild_in_a_new_session_goes_too(tmp_path: Path) -> None:
    child, members = family(tmp_path, "away")
    assert os.getpgid(members[0].pid) != os.getpgid(members[1].pid)
    begin = time.monotonic()
    assert end_group(child.pid, 0.2)
    assert time.monotonic() - begin >= 0.2  # the grace after SIGTERM
    assert not any(runs(p) for p in members)
    assert child.wait(1) == -9  # the exit status is left to the parent
    assert end_group(child.pid, 0.2)  # nothing is left to end


def test_a_group_whose_leader_is_gone(tmp_path: Path) -> None:
    child, members = family(tmp_path, "stay")
    child.kill()
    child.wait()
    assert sum(runs(p) for p in members) == 1
    assert end_group(child.pid, 0.0)
    assert not any(runs(p) for p in members)


def test_a_process_that_obeys_sigterm_is_not_waited_for() -> None:
    child = subprocess.Popen(["sleep", "60"], start_new_session=True)
    begin = time.monotonic()
    assert end_group(child.pid, 30)
    assert time.monotonic() - begin < 20
    assert child.wait(1) == -15


def test_alive_distinguishes_processes_with_the_same_id() -> None:
    child = subprocess.Popen(["sleep", "60"])
    born = created(child.pid)
    assert born is not None
    assert alive(child.pid, born)
    assert not alive(child.pid, born + 1)
    child.kill()
    wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
    assert not alive(child.pid, born)
    child.wait()
    assert not alive(child.pid, born)
    assert created(child.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="psutil's value on other systems")
def test_created_is_counted_from_the_start_of_the_machine() -> None:
    assert created(os.getpid()) == pytest.approx(psutil.Process().create_time() - psutil.boot_time(), abs=1.1)
