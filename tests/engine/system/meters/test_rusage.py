"""Resource use on macOS: each figure comes from its own place in the structure of the system's header."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import pytest

from engine.system.memory import _macos_peak
from engine.system.meters.rusage import FIELDS, rusage

STRUCT = (  # struct rusage_info_v4 of <sys/resource.h>, after ri_uuid
    "user_time", "system_time", "pkg_idle_wkups", "interrupt_wkups", "pageins", "wired_size", "resident_size",
    "phys_footprint", "proc_start_abstime", "proc_exit_abstime", "child_user_time", "child_system_time",
    "child_pkg_idle_wkups", "child_interrupt_wkups", "child_pageins", "child_elapsed_abstime", "diskio_bytesread",
    "diskio_byteswritten", "cpu_time_qos_default", "cpu_time_qos_maintenance", "cpu_time_qos_background",
    "cpu_time_qos_utility", "cpu_time_qos_legacy", "cpu_time_qos_user_initiated", "cpu_time_qos_user_interactive",
    "billed_system_time", "serviced_system_time", "logical_writes", "lifetime_max_phys_footprint", "instructions", "cycles",
    "billed_energy", "serviced_energy", "interval_max_phys_footprint", "runnable_time",
)  # fmt: skip


class FakeLibproc:
    """Answers each field with 1000 plus its place after the uuid."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def proc_pid_rusage(self, pid: int, flavor: int, buffer: Any) -> int:
        assert pid == os.getpid() and flavor == 4
        fields = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint64))
        for i in range(len(STRUCT)):
            fields[2 + i] = 1000 + i
        return self.status


@pytest.mark.parametrize("name", FIELDS)
def test_a_figure_is_at_the_place_of_the_header(name: str) -> None:
    assert rusage(name, FakeLibproc()) == 1000 + STRUCT.index(name)


def test_the_peak_is_the_lifetime_maximum_of_the_footprint() -> None:
    assert _macos_peak(FakeLibproc()) == 1028


def test_a_refused_call_gives_no_figure_and_other_systems_have_none() -> None:
    assert rusage("billed_energy", FakeLibproc(-1)) is None
    with pytest.raises(RuntimeError, match="no peak memory"):
        _macos_peak(FakeLibproc(-1))
    if sys.platform != "darwin":
        assert rusage("billed_energy") is None
