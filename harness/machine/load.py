"""Machine load: CPU use of other processes, available memory, heat and power, as seen at one moment.

`Meters` is the only access to the system, the clock included, so tests replace it. Work that the kernel does for a run in
threads of its own (decryption, write-back) counts as load of other processes.
"""

from __future__ import annotations

import contextlib
import copy
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engine.knobs import GB
from engine.system.machine_state import MachineState, machine_state

from . import identity

LOOK_S = 0.5  # shortest duration of a look before a run
LONGEST_LOOK_S = 10.0  # a longer one says little about the present


class Meters:
    """Readings of this machine. `roots` are the processes that count as the search's own, with their descendants; by
    default this process."""

    cheap_state = sys.platform == "linux"  # a millisecond, where macOS starts four short processes

    def __init__(self, *roots: int) -> None:
        self.roots = roots or (os.getpid(),)
        self.cores = psutil.cpu_count() or 1
        self.memory_gb = identity.memory_gb()

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def state(self) -> MachineState:
        return machine_state()

    def available_gb(self) -> float:
        return identity.available_gb()

    def free_gb(self, folder: Path) -> float:
        """Free space on the disk that holds `folder`."""
        return shutil.disk_usage(folder).free / GB

    def busy_s(self) -> tuple[float, float]:
        """CPU seconds spent so far by the whole machine, and by the search's own processes including ended children. The
        first is not a number where the system hides it."""
        try:
            t = psutil.cpu_times()
        except (OSError, psutil.Error, RuntimeError):
            return math.nan, 0.0
        return t.user + t.system + getattr(t, "nice", 0.0) + getattr(t, "steal", 0.0), sum(map(_spent_s, self._own()))

    def _own(self) -> set[psutil.Process]:
        own = set()
        for pid in self.roots:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                own |= {root, *root.children(recursive=True)}
        return own


def _spent_s(process: psutil.Process) -> float:
    try:
        t = process.cpu_times()
    except psutil.Error:
        return 0.0
    return t.user + t.system + t.children_user + t.children_system


class CpuLoad:
    """Cores that other processes keep busy: since the last sample, and on average since the object was created."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._at, self._busy = meters.now(), meters.busy_s()
        self._core_s = self._seconds = 0.0

    def sample(self) -> float | None:
        """Busy cores of other processes since the last sample; None if unknown."""
        at, busy = self._meters.now(), self._meters.busy_s()
        seconds, own = at - self._at, busy[1] - self._busy[1]
        others = busy[0] - self._busy[0] - own
        self._at, self._busy = at, busy
        if (
            seconds <= 0 or own < 0 or math.isnan(others)
        ):  # a child ended on a system that does not add its time to the parent's
            return None
        core_s = min(max(0.0, others), seconds * self._meters.cores)
        self._core_s, self._seconds = self._core_s + core_s, self._seconds + seconds
        return core_s / seconds

    def continued(self) -> CpuLoad:
        """A load that begins with the last sample of this one."""
        found = copy.copy(self)
        found._core_s = found._seconds = 0.0
        return found

    def mean(self) -> float | None:
        """Mean of all samples, weighted by time; None without samples."""
        return self._core_s / self._seconds if self._seconds else None


@dataclass(frozen=True)
class Look:
    """The machine before a run."""

    load: float | None  # busy cores of other processes
    available_gb: float
    state: MachineState
    counts: Mapping[str, int | None]  # changes during the look: see MachineState.counts_since
    seconds: float = LOOK_S  # duration of the look

    def columns(self) -> dict[str, Any]:
        """The columns of a row that describe the machine before its run."""
        return {
            "load_before": self.load,
            "available_gb_before": self.available_gb,
            "thermal_state_before": self.state.thermal_state,
            "thermal_pressure_before": self.state.thermal_pressure,
            "temperature_c_before": self.state.temperature_c,
            "power_source_before": self.state.power_source,
        }


class Beginning:
    """The beginning of a look, which other work may follow before its end."""

    def __init__(self, meters: Meters, load: CpuLoad | None = None) -> None:
        """`load`: one that was just sampled, whose last sample begins the look."""
        self._at, self._state = meters.now(), meters.state()
        self._load = CpuLoad(meters) if load is None else load.continued()
        self._after: CpuLoad | None = None

    def run_ended(self, meters: Meters) -> None:
        """The run that the look began in has ended. It may have kept other processes from the cores, so the load since then
        counts as well: the larger one is that of the look."""
        self._after = CpuLoad(meters)

    def age_s(self, meters: Meters) -> float:
        return meters.now() - self._at

    def end(self, meters: Meters) -> Look | None:
        """What was seen since, after a wait if that is less than `LOOK_S`; None after more than `LONGEST_LOOK_S`."""
        if (past := self.age_s(meters)) > LONGEST_LOOK_S:
            return None
        if past < LOOK_S:
            meters.sleep(LOOK_S - past)
        busy, state, seconds = self._load.sample(), meters.state(), self.age_s(meters)
        if self._after is not None and busy is not None:
            busy = max(busy, self._after.sample() or 0.0)
        return Look(busy, meters.available_gb(), state, state.counts_since(self._state), seconds)


def look(meters: Meters, begun: Beginning | None = None) -> Look:
    """Observe the machine for `LOOK_S` seconds, or since a look was begun."""
    seen = None if begun is None else begun.end(meters)
    return seen or Beginning(meters).end(meters) or glance(meters)


def glance(meters: Meters) -> Look:
    """Read the machine's state at once; load and counts stay unknown."""
    state = meters.state()
    return Look(None, meters.available_gb(), state, dict.fromkeys(state.counts_since(state)))
