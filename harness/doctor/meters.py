"""Meters: what this machine is, what a process may use of it, and every figure that the engine and the guards read."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import sys
import time
import zlib
from typing import Any

import psutil

from engine.knobs import GB
from engine.system.machine_state import MachineState, machine_state
from engine.system.memory import disk_bytes_read, disk_bytes_written, memory_bytes, peak_memory_bytes
from engine.system.meters.energy import energy
from engine.system.meters.translated import refuse_translated
from engine.system.user_cache import KEPT_PROMPTS, cached_file
from harness.machine import identity
from harness.machine.clocks import awake, continuous
from harness.machine.load import CpuLoad, Meters
from harness.machine.processes import created

from .check import Answer, Check, Place

LOOK_S = 0.3


def checks() -> list[Check]:
    """The checks of the groups machine, limits and meters."""
    return [
        Check("machine", "processor", _processor, "Rows have no processor name."),
        Check("machine", "system", _system),
        Check("machine", "versions", _versions),
        Check("machine", "native core", _native_core, "The engine does not start."),
        Check("machine", "start of the machine", _boot, "A study cannot tell that the machine was restarted."),
        *([Check("machine", "translation by Rosetta", _translated)] if sys.platform == "darwin" else []),
        Check("machine", "clock that goes on during sleep", _continuous, "Sleep during a run is not seen."),
        Check("limits", "memory", _memory),
        Check("limits", "available memory", _available),
        Check("limits", "open files", _open_files),
        Check("limits", "disk space", _disk_space),
        Check("limits", "user cache folder", _user_cache, "Profiles and references are computed again for each run."),
        Check("limits", "kept prompts", _kept_prompts),
        Check("meters", "peak memory of a process", _peak_memory),
        Check("meters", "bytes read from the disk", _disk_read, "Rows cannot tell disk reads from the page cache."),
        *(_state(name, title, text) for name, title, systems, text in STATE_METERS if sys.platform in systems),
        Check("meters", "bytes written to the disk", _disk_written, "Rows cannot tell what a run wrote."),
        Check("meters", "energy", _energy, "Rows have no energy."),
        Check("meters", "load of other processes", _load, "Runs on a busy machine are not marked."),
        Check("meters", "start time of a process", _created, "A resumed study cannot tell a live run from an old id."),
    ]


ANY = ("linux", "darwin")
STATE_METERS = (  # field of the state, title, systems that have it, what follows where it has no value
    ("thermal_state", "thermal state", ("darwin",), "Heat is not seen by this meter."),
    ("thermal_pressure", "thermal pressure", ("darwin",), "Throttling is seen late, by the thermal state."),
    ("temperature_c", "temperature", ("linux",), "Heat is not seen by this meter."),
    ("throttle_events", "throttling of the processor", ("linux",), "A throttled processor is not seen."),
    ("power_source", "power source", ANY, "A run on battery is not seen; mains power is assumed."),
    ("memory_pressure", "memory pressure", ("darwin",), "Swap and available memory are judged alone."),
    ("swap_used_bytes", "swap in use", ANY, "A full swap is not seen."),
    ("swap_total_bytes", "size of the swap", ANY, "A full swap is not seen."),
    ("swap_in_bytes", "swapped in since the start", ANY, "Swapping is not seen by this meter."),
    ("swap_out_bytes", "swapped out since the start", ANY, "Swapping is not seen by this meter."),
)


def _state(name: str, title: str, without: str) -> Check:
    def run(place: Place) -> Answer | None:
        value = getattr(state(), name)
        return None if value is None else Answer(_shown(name, value), {name: value})

    return Check("meters", title, run, without)


def state() -> MachineState:
    """The state of the machine, by the one function that the guards use."""
    return machine_state()


def _shown(name: str, value: Any) -> str:
    if name.endswith("_bytes"):
        return f"{value / GB:.3g} GB"
    return f"{value:.0f} °C" if name == "temperature_c" else str(value)


def _processor(place: Place) -> Answer | None:
    known = identity.identity()
    cores, physical = known["cores"], psutil.cpu_count(logical=False)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    usable = f", {allowed} of them usable" if allowed and allowed != cores else ""
    text = f"{known['cpu'] or 'unknown'}, {cores} cores{usable}"
    return Answer(text, {"cpu": known["cpu"], "cores": cores, "physical_cores": physical, "usable_cores": allowed})


def _system(place: Place) -> Answer:
    text = f"{platform.system()} {platform.release()} {platform.machine()}"
    version = platform.mac_ver()[0] if sys.platform == "darwin" else ""
    page_kib = os.sysconf("SC_PAGE_SIZE") // 1024
    return Answer(
        f"{text}{f', macOS {version}' if version else ''}, pages of {page_kib} KiB",
        {"os": text, "macos": version or None, "page_kib": page_kib},
    )


def _versions(place: Place) -> Answer:
    from engine import __version__

    known = identity.identity()
    found = {"headrace": __version__, "commit": known["commit"]}
    found |= {name: known[name] for name in ("python", "mlx", "mlx_lm", "optuna")}
    return Answer(", ".join(f"{name} {str(value)[:12]}" for name, value in found.items() if value), found)


def _native_core(place: Place) -> Answer:
    from engine.native import core

    data = bytes(range(256)) * 4
    if core.crc32(data) != zlib.crc32(data):
        raise ArithmeticError("CRC-32 of 1 KiB is wrong")
    found = {"compiler": core.COMPILER, "abi": "cp311-abi3", "crc32": core.CRC32, "sources": core.SOURCES}
    return Answer(f"{core.COMPILER}, abi3 of Python 3.11, CRC-32 by {core.CRC32}", found)


def _boot(place: Place) -> Answer | None:
    return None if identity.boot_id() is None else Answer("known", {})


def _translated(place: Place) -> Answer:
    refuse_translated()
    return Answer("none", {"translated": False})


def _continuous(place: Place) -> Answer | None:
    slept = continuous() - awake()
    return None if slept < -1 else Answer(f"{max(0.0, slept):.0f} s ahead of the other", {"slept_s": max(0.0, slept)})


def _memory(place: Place) -> Answer:
    total, limit = float(psutil.virtual_memory().total) / GB, memory_bytes() / GB
    text = f"{total:.3g} GB" + (f", of which this control group may use {limit:.3g} GB" if limit < total else "")
    return Answer(text, {"memory_gb": total, "memory_limit_gb": limit})


def _available(place: Place) -> Answer:
    value = identity.available_gb()
    return Answer(f"{value:.3g} GB", {"available_gb": value})


def _open_files(place: Place) -> Answer:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    shown = ["no limit" if n == resource.RLIM_INFINITY else str(n) for n in (soft, hard)]
    return Answer(f"{shown[0]} (at most {shown[1]})", {"open_files": soft, "most_open_files": hard})


def _disk_space(place: Place) -> Answer:
    usage = shutil.disk_usage(place.folder)
    return Answer(f"{usage.free / GB:.3g} of {usage.total / GB:.3g} GB free", {"disk_free_gb": usage.free / GB})


def _user_cache(place: Place) -> Answer:
    folder = cached_file("doctor").parent
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".doctor-{os.getpid()}"
    probe.write_bytes(b"")
    probe.unlink()
    return Answer("writable", {})


def _kept_prompts(place: Place) -> Answer:
    sizes = [file.stat().st_size for file in cached_file(KEPT_PROMPTS).glob("*.safetensors")]
    text = f"{sum(sizes) / GB:.3g} GB in {len(sizes)} files; a study's limit is protocol.kept_gb"
    return Answer(text, {"files": len(sizes), "kept_gb": sum(sizes) / GB})


def _peak_memory(place: Place) -> Answer:
    value = peak_memory_bytes() / GB
    return Answer(f"{value:.3g} GB", {"peak_memory_gb": value})


def _disk_read(place: Place) -> Answer | None:
    value = disk_bytes_read()
    return None if value is None else Answer(f"{value} bytes so far", {})


def _disk_written(place: Place) -> Answer | None:
    value = disk_bytes_written()
    return None if value is None else Answer(f"{value} bytes so far", {})


def _energy(place: Place) -> Answer | None:
    value = energy()
    return None if value is None else Answer(f"counts {', '.join(value.joules)}", {"energy_sources": list(value.joules)})


def _load(place: Place) -> Answer | None:
    load = CpuLoad(Meters())
    time.sleep(LOOK_S)
    value = load.sample()
    return None if value is None else Answer(f"{value:.1f} cores", {"load_cores": value})


def _created(place: Place) -> Answer | None:
    return None if created(os.getpid()) is None else Answer("known", {})
