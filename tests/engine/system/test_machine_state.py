"""Meters: what each says adds up with the others, and what the system says is read as its documentation has it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from engine import Judge, Knobs, footprint, load
from engine.measure.judge import Text
from engine.stats import LayerCounts, Stats
from engine.system import machine_state as meters
from engine.system.machine_state import MachineState, machine_state, thermal_state
from engine.system.memory import _linux_disk_read, _macos_disk_read, page_cache_share

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until night. "
JUDGE = Judge((Text("a", "prose", TEXT, TEXT[:60]), Text("b", "prose", TEXT[::-1], TEXT[30:90])))

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


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.mark.parametrize(
    "knobs", [{}, {"sync_window": 0}, {"prefetch": "stale_gate"}, {"io_mode": "direct"}, {"cache_gb": 1.0}]
)
def test_layers_and_tokens_add_up_to_the_measurement(path: Path, knobs: dict[str, Any]) -> None:
    with load(path, Knobs(**{"cache_gb": footprint(path).one_token_gb * 1.2, **knobs})) as engine:
        m = engine.measure(JUDGE)
        layers, tokens = pd.DataFrame(engine.decoded.by_layer()), pd.DataFrame(engine.decoded.by_token())
        whole = pd.DataFrame(engine.stats.by_layer())
    assert layers.layer.tolist() == [0, 1, 2]
    for name in ("hits", "misses", "reads", "bytes_read"):
        assert layers[name].sum() == getattr(m, name), name
    assert (whole.hits.sum(), whole.bytes_read.sum()) == (engine.stats.hits, engine.stats.bytes_read)
    assert (layers.hits + layers.misses).tolist() == [m.decode_tokens * 4] * 3
    assert np.allclose(layers.hit_rate, layers.hits / (layers.hits + layers.misses))
    assert len(tokens) == m.decode_tokens
    assert np.allclose(tokens.wall_ms, tokens[["io_ms", "sync_ms", "quantize_ms", "compute_ms"]].sum(axis=1))
    assert (tokens >= 0).all().all() and (tokens.compute_ms > 0).all()
    assert tokens.io_ms.sum() == pytest.approx(m.io_ms) and tokens.sync_ms.sum() == pytest.approx(m.sync_ms)
    assert tokens.wall_ms.sum() <= m.decode_tokens / m.decode_tok_s * 1e3
    assert (m.decode_ms_p50, m.decode_ms_p95) == tuple(tokens.wall_ms.quantile([0.5, 0.95]))
    assert m.compute_ms_per_token == pytest.approx(tokens.compute_ms.mean())


def test_a_wait_for_the_disk_is_in_io_and_not_in_compute(path: Path) -> None:
    """12 kB an expert at 1 MB/s: every missed expert is 12 ms."""
    with load(path, Knobs(cache_gb=footprint(path).one_token_gb, ssd_gbps=0.001)) as engine:
        m = engine.measure(Judge((Text("a", "prose", TEXT[:20], TEXT[:12]),)))
        tokens = engine.decoded.by_token()
    assert m.io_ms_per_token >= 0.9 * m.bytes_per_token / 1e6 * 1e3
    assert np.median(tokens["compute_ms"]) < 0.5 * np.median(tokens["io_ms"])


def test_everything_resident_has_tokens_but_no_layers(path: Path) -> None:
    with load(path) as engine:
        m = engine.measure(JUDGE)
        assert engine.decoded.by_layer() == []
        tokens = engine.decoded.by_token()
    assert len(tokens["wall_ms"]) == m.decode_tokens
    assert np.array_equal(tokens["wall_ms"], tokens["compute_ms"]) and m.page_cache_share is None


def test_counts_are_taken_apart_and_put_together() -> None:
    stats = Stats(layers=[LayerCounts(), LayerCounts()])
    stats.count_uses(0, 3, 1)
    before = stats.copy()
    stats.count_uses(1, 0, 4)
    stats.count_read(1, 100)
    stats.count_read(None, 7)
    with stats.timed_token(), stats.timed("io_ms"):
        pass
    part = before.copy()
    part.reset()
    part.add(stats, since=before)
    assert (part.hits, part.misses, part.reads, part.bytes_read) == (0, 4, 2, 107)
    assert part.by_layer()[0]["hit_rate"] is None and part.by_layer()[1]["bytes_read"] == 100
    assert len(part.by_token()["wall_ms"]) == 1 and before.by_layer()[1]["misses"] == 0
    stats.reset()
    assert stats == Stats(layers=[LayerCounts(), LayerCounts()]) and stats.as_dict()["hit_rate"] is None
    assert not any(len(ms) for ms in stats.by_token().values())


def test_direct_reads_come_from_the_disk_and_cached_ones_do_not(path: Path) -> None:
    smallest = footprint(path).one_token_gb
    shares = {}
    for mode in ("buffered", "direct"):
        with load(path, Knobs(cache_gb=smallest, io_mode=mode)) as engine:
            engine.logits(engine.encode(TEXT))  # brings every page in
            m = engine.measure(JUDGE)
        shares[mode] = m.page_cache_share
        assert m.disk_bytes_read is not None and m.disk_bytes_read >= (m.bytes_read if mode == "direct" else 0)
    assert shares["buffered"] is not None and shares["buffered"] > 0.9
    assert shares["direct"] == 0


def test_page_cache_share() -> None:
    assert page_cache_share(25, 100) == 0.75
    assert page_cache_share(130, 100) == 0
    assert page_cache_share(None, 100) is None and page_cache_share(0, 0) is None


def test_disk_bytes_where_the_system_says(tmp_path: Path) -> None:
    io = tmp_path / "io"
    io.write_text("rchar: 9\nwchar: 8\nsyscr: 1\nsyscw: 1\nread_bytes: 40960\nwrite_bytes: 0\ncancelled_write_bytes: 0\n")
    assert _linux_disk_read(str(io)) == 40960
    assert _linux_disk_read(str(tmp_path / "none")) is None
    io.write_text("rchar: 9\n")
    assert _linux_disk_read(str(io)) is None

    class FakeLibproc:
        """rusage_info_v4: 16 bytes of uuid, then 64-bit fields; ri_diskio_bytesread is number 16."""

        def proc_pid_rusage(self, pid: int, flavor: int, buffer: Any) -> int:
            assert pid == os.getpid() and flavor == 4
            fields = ctypes.cast(buffer, ctypes.POINTER(ctypes.c_uint64))
            for i in range(35):
                fields[2 + i] = 1000 + i
            return 0

    assert _macos_disk_read(FakeLibproc()) == 1016  # type: ignore[arg-type]


def test_macos(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "thermal_state", lambda: "fair")
    assert machine_state(platform="darwin", run=lambda command: MAC[" ".join(command)]) == MachineState(
        thermal_state="fair", power_source="battery", memory_pressure="warning", swap_used_bytes=round(1042.25 * 2**20),
        swap_in_bytes=123 * 16384, swap_out_bytes=45 * 16384,
    )  # fmt: skip
    desktop = {**MAC, "pmset -g batt": "Now drawing from 'AC Power'\n"}
    assert machine_state(platform="darwin", run=lambda c: desktop[" ".join(c)]).power_source == "ac"


def test_macos_where_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "thermal_state", lambda: None)
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
