"""Machine state: heat, power, memory pressure and swap, which make runs of the same setting differ.

Every figure comes from a documented interface. It is None where the machine has no such sensor or does not report it, as in
most virtual machines. macOS: NSProcessInfo's thermalState (`pmset -g therm` does not cover Apple silicon), the thermal
pressure of notify(3), `pmset -g batt`, `sysctl` and `vm_stat`; written from their documentation, not yet run on a Mac.
Linux: /sys and /proc.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .meters.thermal_pressure import thermal_pressure

THERMAL_STATES = ("nominal", "fair", "serious", "critical")  # NSProcessInfoThermalState, from 0
PRESSURE_LEVELS = {1: "normal", 2: "warning", 4: "critical"}  # kern.memorystatus_vm_pressure_level
BINARY_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}

Run = Callable[[list[str]], str]


@dataclass(frozen=True)
class MachineState:
    """The machine at one moment. Counts start at boot; take the difference of two states."""

    thermal_state: str | None = None  # macOS: nominal, fair, serious or critical
    thermal_pressure: str | None = None  # macOS: nominal, moderate (throttling has begun), heavy, trapping or sleeping
    temperature_c: float | None = None  # Linux: the hottest zone
    throttle_events: int | None = None  # Linux: sum over the logical cores
    power_source: str | None = None  # ac, battery or ups
    memory_pressure: str | None = None  # macOS: normal, warning or critical
    swap_used_bytes: int | None = None
    swap_total_bytes: int | None = None  # macOS adds to it while there is room on the disk
    swap_in_bytes: int | None = None
    swap_out_bytes: int | None = None

    def counts_since(self, start: MachineState) -> dict[str, int | None]:
        """Counts since `start`, by name; None where either state lacks the figure."""
        pairs = {n: (getattr(self, n), getattr(start, n)) for n in ("throttle_events", "swap_in_bytes", "swap_out_bytes")}
        return {n: None if now is None or then is None else now - then for n, (now, then) in pairs.items()}


def machine_state(*, platform: str = sys.platform, root: Path = Path("/"), run: Run | None = None) -> MachineState:
    """The current state. `root` is the folder of Linux's /proc and /sys, and `run` returns a macOS command's output; tests
    replace both.

    Costs under a millisecond on Linux, four short processes on macOS.
    """
    return _macos(run or _output) if platform == "darwin" else _linux(root)


def _macos(run: Run) -> MachineState:
    power = re.search(r"drawing from '(\w+) Power'", run(["pmset", "-g", "batt"]))
    pressure = run(["sysctl", "-n", "kern.memorystatus_vm_pressure_level"]).strip()
    swap = run(["sysctl", "-n", "vm.swapusage"])
    pages = run(["vm_stat"])
    page = re.search(r"page size of (\d+) bytes", pages)

    def swapped(name: str) -> int | None:
        count = re.search(rf"^{name}:\s+(\d+)\.", pages, re.MULTILINE)
        return int(count[1]) * int(page[1]) if count and page else None

    def swap_bytes(name: str) -> int | None:
        size = re.search(rf"{name} = ([\d.]+)([KMG])", swap)
        return round(float(size[1]) * BINARY_UNITS[size[2]]) if size else None

    return MachineState(
        thermal_state=thermal_state(),
        thermal_pressure=thermal_pressure(),
        power_source=power[1].lower() if power else None,
        memory_pressure=PRESSURE_LEVELS.get(int(pressure)) if pressure.isdigit() else None,
        swap_used_bytes=swap_bytes("used"),
        swap_total_bytes=swap_bytes("total"),
        swap_in_bytes=swapped("Swapins"),
        swap_out_bytes=swapped("Swapouts"),
    )


def thermal_state(objc: ctypes.CDLL | None = None) -> str | None:
    """`[[NSProcessInfo processInfo] thermalState]` through the Objective-C runtime; None without one."""
    try:
        if objc is None:
            ctypes.CDLL("/System/Library/Frameworks/Foundation.framework/Foundation")
            objc = ctypes.CDLL("/usr/lib/libobjc.A.dylib")
    except OSError:
        return None
    for name in ("objc_getClass", "sel_registerName", "objc_msgSend"):
        getattr(objc, name).restype = ctypes.c_void_p
    objc.objc_getClass.argtypes = objc.sel_registerName.argtypes = [ctypes.c_char_p]
    objc.objc_msgSend.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    info = objc.objc_msgSend(objc.objc_getClass(b"NSProcessInfo"), objc.sel_registerName(b"processInfo"))
    if not info:
        return None
    state = objc.objc_msgSend(info, objc.sel_registerName(b"thermalState")) or 0  # ctypes returns None for 0
    return THERMAL_STATES[state] if state < len(THERMAL_STATES) else None


def _linux(root: Path) -> MachineState:
    temperatures = [_number(f) for f in root.glob("sys/class/thermal/thermal_zone*/temp")]
    throttled = [_number(f) for f in root.glob("sys/devices/system/cpu/cpu*/thermal_throttle/*_throttle_count")]
    vmstat, meminfo = _table(root / "proc/vmstat"), _table(root / "proc/meminfo")
    page = os.sysconf("SC_PAGE_SIZE")
    swap = [meminfo.get(name) for name in ("SwapTotal", "SwapFree")]
    return MachineState(
        temperature_c=max((t / 1000 for t in temperatures if t is not None), default=None),
        throttle_events=sum(t for t in throttled if t is not None) if throttled else None,
        power_source=_linux_power(root / "sys/class/power_supply"),
        swap_used_bytes=None if swap[0] is None or swap[1] is None else (swap[0] - swap[1]) * 1024,
        swap_total_bytes=None if swap[0] is None else swap[0] * 1024,
        swap_in_bytes=None if "pswpin" not in vmstat else vmstat["pswpin"] * page,
        swap_out_bytes=None if "pswpout" not in vmstat else vmstat["pswpout"] * page,
    )


def _linux_power(supplies: Path) -> str | None:
    """ac if a supply is online, battery if the system's own is discharging. Batteries of mice and the like are ignored."""
    found = [{name: _text(s / name) for name in ("type", "online", "status", "scope")} for s in supplies.glob("*")]
    found = [s for s in found if s["scope"] != "Device"]
    if any(s["type"] in ("Mains", "USB") and s["online"] in ("1", "2") for s in found):
        return "ac"
    return "battery" if any(s["type"] == "Battery" and s["status"] == "Discharging" for s in found) else None


def _text(file: Path) -> str | None:
    try:
        return file.read_text().strip()
    except (OSError, ValueError):  # an existing sensor may be unreadable
        return None


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def _table(file: Path) -> dict[str, int]:
    """The lines `name number` of a file in /proc."""
    lines = re.findall(r"^(\w+):?\s+(\d+)", _text(file) or "", re.MULTILINE)
    return {name: int(number) for name, number in lines}


def _output(command: list[str]) -> str:
    """The output of a command; empty if it does not exist or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
