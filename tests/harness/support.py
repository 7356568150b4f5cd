"""Commands of a study on the fake engine, a simulated machine, and a wait with a deadline, for several test files."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from engine.system.machine_state import MachineState
from harness.machine.load import Meters

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FSYNC = os.fsync  # the fixtures replace it
QUICK = ("sampler.name=random", "protocol.stop_error=0")  # for studies without child processes


def prepare(folder: Path) -> Path:
    """Put a fake checkpoint and an evaluation text into `folder`."""
    (folder / "checkpoint").mkdir()
    (folder / "judge.txt").write_text("The miller opens the headrace and the wheel begins to turn. " * 8)
    return folder


def arguments(place: Path, *overrides: str) -> list[str]:
    """The command line of a study on the fake engine; the overrides of a test replace the defaults here."""
    given = {o.split("=")[0] for o in overrides}
    defaults = {
        "engine.module": "fake_engine",
        "model.path": str(place / "checkpoint"),
        "quality.text": str(place / "judge.txt"),
        "results_dir": str(place / "results"),
        "confirm.share": "0",  # confirmation and control runs have tests of their own
        "sentinel.every": "0",
        "protocol.cool_down_s": "0",
        "guards.wait_s": "0",  # the suite shares its machine with other work
        "guards.max_load": "99",
        "guards.alone": "false",
        "guards.keep_awake": "false",
    }
    return [*overrides, *(f"{k}={v}" for k, v in defaults.items() if k not in given)]


Cli = Callable[..., tuple[int, str, str]]


def spawn(place: Path, *overrides: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """The same command in a process of its own, which a test may kill."""
    return subprocess.Popen(
        [sys.executable, "-m", "harness.search", *arguments(place, *overrides)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd or place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(HERE), str(ROOT)))},
    )


def wait_for(
    condition: Callable[[], object], timeout_s: float = 120, pause_s: float = 0.02, by: subprocess.Popen[str] | None = None
) -> None:
    """Wait until `condition()` is true; fails after `timeout_s`, and once the process `by` ended without making it true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if by is not None and by.poll() is not None and not condition():
            raise AssertionError(f"exit status {by.returncode}: {by.communicate()[1]}")
        assert time.monotonic() < deadline, f"not true within {timeout_s:g} s"
        time.sleep(pause_s)


class Machine(Meters):
    """A simulated machine of 8 cores and 64 GB with its own clock. Other processes keep `load` cores busy, the search two;
    `script` holds (time, action) pairs."""

    def __init__(self, load: float = 0.0, available_gb: float = 32.0, free_disk_gb: float = 100.0, **state: object) -> None:
        super().__init__()
        self.cores, self.memory_gb = 8, 64.0
        self.load, self.available, self.free, self.seen = load, available_gb, free_disk_gb, MachineState(**state)  # type: ignore[arg-type]
        self.time = self.busy = self.own = 0.0
        self.script: list[tuple[float, Callable[[], object]]] = []

    def state(self) -> MachineState:
        return self.seen

    def set(self, **state: object) -> None:
        self.seen = dataclasses.replace(self.seen, **state)  # type: ignore[arg-type]

    def available_gb(self) -> float:
        return self.available

    def free_gb(self, folder: Path) -> float:
        return self.free

    def busy_s(self) -> tuple[float, float]:
        return self.busy + self.own, self.own

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        self.busy += seconds * self.load
        self.own += seconds * 2
        while self.script and self.script[0][0] <= self.time:
            self.script.pop(0)[1]()
