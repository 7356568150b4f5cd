"""Machine state: the system's reports are read as documented."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.system import machine_state as meters
from engine.system.machine_state import MachineState, machine_state, thermal_state

BATTERY = """Now drawing from 'Battery Power'
 -InternalBattery-0 (id=4653155)\t85%; discharging; 5:13 remaining present: true
"""
VM_STAT = """Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                               12345.
"Translation faults":                  98765432.
Pageins:                                  56789.
Pageouts:                                  1234.
Swapins:                                    123.
Swapouts:                                    45.
"""
MAC = {
    "pmset -g batt": BATTERY,
    "sysctl -n kern.memorystatus_vm_pressure_level": "2\n",
    "sysctl -n vm.swapusage": "total = 2048.00M  used = 1042.25M  free = 1005.75M  (encrypted)\n",
    "vm_stat": VM_STAT,
}


def test_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "thermal_state", lambda: "fair")
    monkeypatch.setattr(meters, "thermal_pressure", lambda: "moderate")
    assert machine_state(platform="darwin", run=lambda command: MAC[" ".join(command)]) == MachineState(
        thermal_state="fair", thermal_pressure="moderate", power_source="battery", memory_pressure="warning",
        swap_used_bytes=round(1042.25 * 2**20), swap_total_bytes=2 << 30,
        swap_in_bytes=123 * 16384, swap_out_bytes=45 * 16384,
    )  # fmt: skip
    desktop = {**MAC, "pmset -g batt": "Now drawing from 'AC Power'\n"}
    assert machine_state(platform="darwin", run=lambda c: desktop[" ".join(c)]).power_source == "ac"


def test_macos_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "thermal_state", lambda: None)
    monkeypatch.setattr(meters, "thermal_pressure", lambda: None)
    assert machine_state(platform="darwin", run=lambda _: "") == MachineState()
    monkeypatch.setenv("PATH", "")
    assert machine_state(platform="darwin") == MachineState()


@pytest.mark.parametrize(("raw", "state"), [(None, "nominal"), (1, "fair"), (2, "serious"), (3, "critical"), (4, None)])
def test_thermal_state_by_the_objective_c_runtime(raw: int | None, state: str | None) -> None:
    class Function:
        def __init__(self, body: Callable[..., int | None]) -> None:
            self.body = body

        def __call__(self, *args: Any) -> int | None:
            assert self.restype is ctypes.c_void_p and len(self.argtypes) == len(args)
            return self.body(*args)

        restype: Any
        argtypes: Any

    class FakeRuntime:
        objc_getClass = Function(lambda name: {b"NSProcessInfo": 10}[name])
        sel_registerName = Function(lambda name: {b"processInfo": 20, b"thermalState": 21}[name])
        objc_msgSend = Function(lambda to, what: {(10, 20): 11, (11, 21): raw}[to, what])

    assert thermal_state(FakeRuntime()) == state  # type: ignore[arg-type]


def test_no_thermal_state_without_the_runtime_or_its_class() -> None:
    class NoClass:
        def __init__(self) -> None:
            for name in ("objc_getClass", "sel_registerName", "objc_msgSend"):
                setattr(self, name, type("Function", (), {"__call__": lambda *_: None})())

    assert thermal_state(NoClass()) is None  # type: ignore[arg-type]
    if sys.platform != "darwin":
        assert thermal_state() is None


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


LAPTOP = {
    "sys/class/thermal/thermal_zone0/temp": "45000",
    "sys/class/thermal/thermal_zone1/temp": "71500",
    "sys/class/thermal/thermal_zone2/temp": "",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3",
    "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_total_time_ms": "9999",
    "sys/devices/system/cpu/cpu1/thermal_throttle/core_throttle_count": "4",
    "sys/class/power_supply/AC/type": "Mains",
    "sys/class/power_supply/AC/online": "0",
    "sys/class/power_supply/BAT0/type": "Battery",
    "sys/class/power_supply/BAT0/status": "Discharging",
    "proc/vmstat": "nr_free_pages 100\npswpin 7\npswpout 11",
    "proc/meminfo": "MemTotal:       24684084 kB\nSwapTotal:       2048 kB\nSwapFree:        1024 kB",
}


def test_linux(tmp_path: Path) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    laptop = machine_state(platform="linux", root=tree(tmp_path, LAPTOP))
    assert laptop == MachineState(
        temperature_c=71.5, throttle_events=7, power_source="battery", swap_used_bytes=1024 * 1024,
        swap_total_bytes=2048 * 1024,
        swap_in_bytes=7 * page, swap_out_bytes=11 * page,
    )  # fmt: skip
    tree(tmp_path, {"sys/class/power_supply/AC/online": "1", "proc/vmstat": "pswpin 7\npswpout 20"})
    later = machine_state(platform="linux", root=tmp_path)
    assert later.power_source == "ac"
    assert later.counts_since(laptop) == {"throttle_events": 0, "swap_in_bytes": 0, "swap_out_bytes": 9 * page}
    assert later.counts_since(MachineState()) == dict.fromkeys(("throttle_events", "swap_in_bytes", "swap_out_bytes"))


def test_a_mouse_is_no_power_source_and_a_machine_without_sensors_says_nothing(tmp_path: Path) -> None:
    mouse = {"type": "Battery", "status": "Discharging", "scope": "Device"}
    tree(tmp_path, {f"sys/class/power_supply/mouse/{name}": text for name, text in mouse.items()})
    assert machine_state(platform="linux", root=tmp_path) == MachineState()


def test_this_machine_answers() -> None:
    state = machine_state()
    assert state.swap_used_bytes is None or state.swap_used_bytes >= 0
    assert state.temperature_c is None or 0 < state.temperature_c < 150
