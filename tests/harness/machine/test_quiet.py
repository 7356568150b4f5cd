"""Guards: every decision on a machine made up of figures; the two locks and what holds off sleep with real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import Machine

from harness import ResultsError
from harness.machine import identity as machine
from harness.machine import quiet as guards
from harness.machine.quiet import Load, Meters, Watch, check_disk, keep_awake, machine_lock, wait_until_quiet
from harness.results.columns import NAMES
from harness.schema import GuardsConfig

ROOT = Path(__file__).parents[3]
CONFIG = GuardsConfig(wait_s=60)


def quiet(m: Machine, config: GuardsConfig = CONFIG, **more: object) -> tuple[guards.Quiet, list[str]]:
    notes: list[str] = []
    return wait_until_quiet(config, note=notes.append, meters=m, **more), notes  # type: ignore[arg-type]


def test_a_quiet_machine_is_not_waited_for() -> None:
    found, notes = quiet(Machine(load=3.9, temperature_c=60.0, power_source="ac"))
    assert (found.waited_s, found.reason, notes) == (0.0, None, [])
    assert found.seen.columns() == {
        "load_before": pytest.approx(3.9),
        "available_gb_before": 32.0,
        "thermal_state_before": None,
        "temperature_c_before": 60.0,
        "power_source_before": "ac",
    }
    assert set(found.seen.columns()) < set(NAMES)


@pytest.mark.parametrize(
    ("m", "reason"),
    [
        (Machine(load=4.2), "others keep 4.2 of 8 cores busy, above 4 (guards.max_load)"),
        (Machine(available_gb=3.0), "3 GB of memory are available, below 3.2 (guards.min_free_memory_share=0.05)"),
        (Machine(thermal_state="serious"), "thermal state serious"),
        (Machine(thermal_state="critical"), "thermal state critical"),
        (Machine(memory_pressure="critical"), "memory pressure critical"),
    ],
)
def test_it_waits_and_then_says_why_it_is_suspect(m: Machine, reason: str) -> None:
    found, notes = quiet(m)
    assert 57 <= found.waited_s <= 60
    assert found.reason == reason
    assert notes == [f"waiting for a quiet machine, 60 s at most: {reason}"]


def test_counts_that_grow_are_waited_for() -> None:
    for name, step, reason in (
        ("throttle_events", 1, "the processor is throttled"),
        ("swap_out_bytes", 2_000_000, "the machine is swapping"),
    ):
        m = Machine(**{name: 5})
        m.script = [(0.1 * i, lambda m=m, i=i, n=name, s=step: m.set(**{n: 5 + i * s})) for i in range(100)]  # 10 s long
        found, notes = quiet(m)
        assert found.reason is None
        assert 7.5 <= found.waited_s <= 15
        assert notes[0].endswith(reason) and notes[-1] == f"quiet again after {found.waited_s:.0f} s"
    steady = Machine(throttle_events=7, swap_out_bytes=10**9, swap_used_bytes=10**9)
    assert quiet(steady)[0].reason is None  # it happened before


def test_what_it_waits_for_is_said_once_a_kind() -> None:
    m = Machine(load=8)
    m.script = [(5, lambda: setattr(m, "load", 7)), (20, lambda: (m.set(thermal_state="serious"))),
                (30, lambda: (m.set(thermal_state="fair"), setattr(m, "load", 0)))]  # fmt: skip
    found, notes = quiet(m)
    assert [note.partition(": ")[2].partition(" ")[0] for note in notes[:-1]] == ["others", "thermal"]
    assert 28 <= found.waited_s <= 35


def test_battery_stops_the_study_and_a_plug_goes_on() -> None:
    with pytest.raises(ResultsError, match=r"on battery .*wait_s=60.*plug it in.*guards.allow_battery=true") as e:
        quiet(Machine(power_source="battery"))
    assert "\n" not in str(e.value)
    m = Machine(power_source="battery")
    m.script = [(20, lambda: m.set(power_source="ac"))]
    assert quiet(m)[0].reason is None
    assert quiet(Machine(power_source="battery"), GuardsConfig(allow_battery=True))[0].reason is None


def test_no_wait_takes_no_time_and_interrupted_ends_it() -> None:
    m = Machine(load=8, thermal_state="serious")
    found, _ = quiet(m, GuardsConfig(wait_s=0))
    assert (m.time, found.reason, found.seen.load) == (0.0, "thermal state serious", None)
    m = Machine(load=8)
    found, _ = quiet(m, interrupted=lambda: m.time > 10)
    assert 10 < found.waited_s < 14
    assert quiet(Machine(power_source="battery"), interrupted=lambda: True)[0].reason  # it ends; no error besides


def test_the_limit_on_load_is_the_users() -> None:
    assert quiet(Machine(load=1.0), GuardsConfig(max_load=0.5, wait_s=1))[0].reason
    assert quiet(Machine(load=7.0), GuardsConfig(max_load=7.5, wait_s=1))[0].reason is None


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    check_disk(CONFIG, tmp_path, Machine(free_disk_gb=1.01))
    with pytest.raises(ResultsError, match=r"0\.2 GB are free where .*guards\.min_disk_gb=1; nothing is lost: make room"):
        check_disk(CONFIG, tmp_path, Machine(free_disk_gb=0.2))
    check_disk(GuardsConfig(min_disk_gb=0), tmp_path)


def watched(m: Machine, seconds: float = 60, **figures: object) -> dict[str, object]:
    watch = Watch(CONFIG, quiet(Machine())[0], m)
    while m.time < seconds:
        m.sleep(0.1)
        watch.look()
    return watch.end({name: figures.get(name) for name in figures})


def test_a_run_on_a_quiet_machine_is_not_suspect() -> None:
    row = watched(Machine(load=2.5, throttle_events=3, swap_out_bytes=10**10, power_source="ac", thermal_state="fair"))
    assert row["load_during"] == pytest.approx(2.5)  # without the two cores of our own
    assert (row["suspect"], row["throttle_events"], row["swap_out_bytes"]) == (None, 0, 0)
    assert (row["load_before"], row["waited_s"], row["thermal_state"]) == (0.0, 0.0, "fair")
    assert set(row) < set(NAMES)


@pytest.mark.parametrize(
    ("during", "reason"),
    [
        ({"throttle_events": 4}, "heat: throttled 4 times"),
        ({"thermal_state": "serious"}, "heat: thermal state serious"),
        ({"swap_out_bytes": 200_000_000}, "swap: 200 MB swapped out"),
        ({"swap_out_bytes": 1_000_000}, None),
        ({"power_source": "battery"}, "power: on battery"),
        ({"memory_pressure": "critical"}, "memory: pressure critical"),
        ({"memory_pressure": "warning"}, None),
    ],
)
def test_what_happened_during_a_run(during: dict[str, object], reason: str | None) -> None:
    start = {"throttle_events": 0, "swap_out_bytes": 0, "thermal_state": "nominal", "power_source": "ac"}
    m = Machine(**start)
    m.script = [(25, lambda: m.set(**during))]
    assert watched(m)["suspect"] == reason
    gone = Machine(**start)  # a state that passes is seen too, where it is no count
    gone.script = [(15, lambda: gone.set(**during)), (35, lambda: gone.set(**start))]
    counted = {"throttle_events", "swap_out_bytes"} & set(during)
    assert watched(gone)["suspect"] == (None if counted else reason)


def test_the_load_of_a_run_is_its_mean_and_the_engine_knows_better() -> None:
    m = Machine(load=8)
    m.script = [(45, lambda: setattr(m, "load", 0))]
    row = watched(m)
    assert row["load_during"] == pytest.approx(6, abs=0.1)
    assert row["suspect"] == "load: others kept 6.0 of 8 cores busy, above 4"
    assert watched(Machine(), throttle_events=2)["suspect"] == "heat: throttled 2 times"
    watch = Watch(CONFIG, quiet(Machine(load=8))[0], m)
    m.sleep(1)
    assert str(watch.end({})["suspect"]) == "before: others keep 8.0 of 8 cores busy, above 4 (guards.max_load)"


def test_a_process_of_ours_that_ended_uncounted_leaves_no_load() -> None:
    m = Machine()
    load = Load(m)
    m.sleep(2)
    m.own -= 10
    assert load.sample() is None
    assert load.mean() is None


def test_our_own_processes_are_not_foreign() -> None:
    """A child that works, and one that worked and was collected, count as ours; with other roots they are foreign."""
    worker = "import os, time\nwhile time.process_time() < 0.3: pass"
    ours, foreign = Meters(), Meters(os.getppid())
    foreign._ours = lambda: set()  # type: ignore[method-assign]
    start, start_foreign = ours.busy_s(), foreign.busy_s()
    subprocess.run([sys.executable, "-c", worker], check=True)
    end = ours.busy_s()
    assert end[1] - start[1] >= 0.28
    assert end[0] - start[0] >= 0.25
    assert foreign.busy_s()[1] == start_foreign[1] == 0
    with subprocess.Popen([sys.executable, "-c", worker + "\ninput()"], stdin=subprocess.PIPE) as child:
        before = ours.busy_s()[1]
        deadline = time.monotonic() + 20
        while ours.busy_s()[1] - before < 0.2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert ours.busy_s()[1] - before >= 0.2
        child.communicate(b"\n")


def test_available_memory_within_a_control_group(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    free = machine.available_gb(tmp_path)
    assert free == pytest.approx(psutil.virtual_memory().available / 1e9, rel=0.1)
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("700000000\n")
    (tmp_path / "memory.stat").write_text("anon 5\nactive_file 100000000\ninactive_file 50000000\n")
    assert machine.available_gb(tmp_path) == pytest.approx(0.45)


HOLD = """
import sys
from pathlib import Path
from harness.machine.quiet import keep_awake, machine_lock
with machine_lock(Path("results/demo")), keep_awake(print, sys.argv[1]):
    print("ready", flush=True)
    sys.stdin.read()
"""


def holder(tmp_path: Path, platform: str = "linux", **env: str) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, platform],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), **env},
    )
    assert child.stdout
    lines = iter(child.stdout.readline, "")
    assert "ready\n" in lines
    return child


def fake(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_one_search_on_a_machine_and_sleep_until_it_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    fake(bin_, "systemd-inhibit", f'echo $$ "$@" > {tmp_path}/called; while [ "$1" != sh ]; do shift; done; exec "$@"')
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    child = holder(tmp_path, PATH=f"{bin_}:{os.environ['PATH']}")
    try:
        with pytest.raises(ResultsError, match=rf"\(process {child.pid}, results/demo\).*guards.alone=false"), \
             machine_lock(tmp_path):  # fmt: skip
            pass
        pid, *options = (tmp_path / "called").read_text().split()
        assert "--what=sleep:idle" in options
        inhibitor = psutil.Process(int(pid))
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    inhibitor.wait(5)  # it ended with its owner
    with machine_lock(tmp_path):
        pass


def test_caffeinate_watches_us_and_ends_with_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "caffeinate", f'echo "$@" > {tmp_path}/called; echo $$ > {tmp_path}/pid; exec sleep 60')
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    notes: list[str] = []
    with keep_awake(notes.append, "darwin"):
        deadline = time.monotonic() + 10
        while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "called").read_text() == f"-ims -w {os.getpid()}\n"
        pid = int((tmp_path / "pid").read_text())
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(pid)
    assert notes == []


def test_where_nothing_holds_off_sleep_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "systemd-inhibit", "echo 'Failed to connect to bus' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    notes: list[str] = []
    with keep_awake(notes.append, "linux"):
        pass
    (tmp_path / "systemd-inhibit").unlink()
    with keep_awake(notes.append, "linux"), keep_awake(notes.append, "darwin"):
        pass
    assert [note.partition(": ")[2] for note in notes] == [
        "systemd-inhibit: Failed to connect to bus",
        "systemd-inhibit cannot be run (No such file or directory)",
        "caffeinate cannot be run (No such file or directory)",
    ]


def test_an_inhibitor_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, "systemd-inhibit", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(guards, "INHIBIT_S", 0.1)
    notes: list[str] = []
    with keep_awake(notes.append, "linux"):
        pass
    assert notes == ["nothing holds off this machine's sleep: systemd-inhibit: no answer within 0.1 s"]


def test_the_lock_without_a_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(guards.tempfile, "gettempdir", lambda: str(tmp_path))
    with machine_lock(tmp_path):
        assert list(tmp_path.glob("headrace-*.lock"))
        with pytest.raises(ResultsError, match=f"process {os.getpid()}"), machine_lock(tmp_path):
            pass
