"""Meters: each check gives figures here, and none raises on a machine where everything is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine import HeadraceError
from engine.system.machine_state import MachineState
from harness.doctor import meters
from harness.doctor.check import FAILS, NO_VALUE, WORKS, Place, Result

MAC = MachineState(
    thermal_state="fair", power_source="battery", memory_pressure="warning", swap_used_bytes=3 * 10**9, swap_in_bytes=0,
    swap_out_bytes=10**6,
)  # fmt: skip


def results(folder: Path) -> dict[str, Result]:
    return {check.name: check.result(Place(folder)) for check in meters.checks()}


def test_on_this_machine(tmp_path: Path) -> None:
    found = results(tmp_path)
    assert {name: r.reason for name, r in found.items() if r.state == FAILS} == {}
    assert (
        found["memory"].figures["memory_limit_gb"]
        <= found["memory"].figures["memory_gb"]
        == pytest.approx(psutil.virtual_memory().total / 1e9)
    )
    assert found["processor"].figures["cores"] >= found["processor"].figures["usable_cores"] >= 1
    assert found["native core"].figures["crc32"] in found["native core"].text
    assert found["versions"].figures["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")


def test_the_meters_of_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(meters, "machine_state", lambda: MAC)
    found = results(tmp_path)
    shown = {name: found[name].text for name in ("thermal state", "power source", "memory pressure", "swap in use")}
    assert shown == {
        "thermal state": "fair", "power source": "battery", "memory pressure": "warning", "swap in use": "3 GB"
    }  # fmt: skip
    assert found["swapped out since the start"].figures == {"swap_out_bytes": 10**6}
    assert not {"temperature", "throttling of the processor"} & found.keys(), "meters of Linux"


def test_rosetta_is_a_failure_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def translated() -> None:
        raise HeadraceError("this Python runs translated by Rosetta; install an arm64 Python")

    assert "translation by Rosetta" not in results(tmp_path) or sys.platform == "darwin"
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(meters, "refuse_translated", translated)
    found = results(tmp_path)["translation by Rosetta"]
    assert found.state == FAILS and found.reason.endswith("install an arm64 Python")


def test_what_is_missing_has_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "machine_state", MachineState)
    found = results(tmp_path)
    assert {found[title].state for _, title, systems, _ in meters.STATE_METERS if sys.platform in systems} == {NO_VALUE}


def test_a_meter_that_raises_fails_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Any:
        raise psutil.AccessDenied(1)

    for name in ("machine_state", "memory_bytes", "peak_memory_bytes", "disk_bytes_read", "created", "Meters"):
        monkeypatch.setattr(meters, name, broken)
    found = results(tmp_path)
    assert found["peak memory of a process"].state == found["memory"].state == found["power source"].state == FAILS
    assert all(r.reason for r in found.values() if r.state == FAILS)
    assert found["disk space"].state == WORKS
