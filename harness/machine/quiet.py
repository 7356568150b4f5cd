"""Guards of an unattended run: what must hold before a run, what is watched during it, and what makes its figures suspect.

Before: room on the disk, memory, a cool machine on mains power that nobody else keeps busy. During: the load of others,
heat, power, swapping. Around the whole search: one search at a time, and no sleep. `Meters` is the seam to the system:
tests give another. What the kernel does for a run in threads of its own (decrypting, writing back) counts as others' load.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from engine.system.machine_state import MachineState, machine_state
from engine.system.user_cache import cached_file
from harness import ResultsError

from . import identity as machine

if TYPE_CHECKING:
    from harness.schema import GuardsConfig

GB = 1_000_000_000
HOT = ("serious", "critical")
SWAP_BYTES = 32_000_000  # written to swap during a run, from which on its figures are suspect
SWAP_LOOK_BYTES = 1_000_000  # and during a look
WAITING, QUIET = "waiting for a quiet machine", "quiet again"
LOOK_S = 0.5  # how long others' load is watched before a run
PAUSE_S = 2.0  # between two looks while waiting, and between two samples during a run
STATE_S = 20.0  # between two states during a run: four short processes on macOS
INHIBIT_S = 5.0  # for systemd-inhibit to answer
Note = Callable[[str], None]


class Meters:
    """What the guards ask of the system, its clock too. `roots` are the processes that count as ours, with descendants."""

    def __init__(self, *roots: int) -> None:
        self.roots = roots or (os.getpid(),)
        self.cores = psutil.cpu_count() or 1
        self.memory_gb = machine.memory_gb()

    def now(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def state(self) -> MachineState:
        return machine_state()

    def available_gb(self) -> float:
        return machine.available_gb()

    def free_gb(self, folder: Path) -> float:
        """Room on the disk that holds `folder`."""
        return shutil.disk_usage(folder).free / GB

    def busy_s(self) -> tuple[float, float]:
        """CPU seconds spent so far by the whole machine, and by our processes, those that ended counted in."""
        t = psutil.cpu_times()
        return t.user + t.system + getattr(t, "nice", 0.0) + getattr(t, "steal", 0.0), sum(map(_spent_s, self._ours()))

    def _ours(self) -> set[psutil.Process]:
        ours = set()
        for pid in self.roots:
            with contextlib.suppress(psutil.Error):
                root = psutil.Process(pid)
                ours |= {root, *root.children(recursive=True)}
        return ours


def _spent_s(process: psutil.Process) -> float:
    try:
        t = process.cpu_times()
    except psutil.Error:
        return 0.0
    return t.user + t.system + t.children_user + t.children_system


class Load:
    """Cores that others keep busy, on average since it was made and since the last sample."""

    def __init__(self, meters: Meters) -> None:
        self._meters = meters
        self._at, self._busy = meters.now(), meters.busy_s()
        self._core_s = self._seconds = 0.0

    def sample(self) -> float | None:
        """Busy cores of others since the last sample; None if that is not known."""
        at, busy = self._meters.now(), self._meters.busy_s()
        seconds, ours = at - self._at, busy[1] - self._busy[1]
        others = busy[0] - self._busy[0] - ours
        self._at, self._busy = at, busy
        if seconds <= 0 or ours < 0:  # one of ours ended, on a system that does not count it to its parent
            return None
        core_s = min(max(0.0, others), seconds * self._meters.cores)
        self._core_s, self._seconds = self._core_s + core_s, self._seconds + seconds
        return core_s / seconds

    def mean(self) -> float | None:
        """Over all samples; None without any."""
        return self._core_s / self._seconds if self._seconds else None


@dataclass(frozen=True)
class Look:
    """The machine as it was found before a run."""

    load: float | None  # busy cores of others
    available_gb: float
    state: MachineState
    counts: Mapping[str, int | None]  # while it was looked at: see MachineState.counts_since

    def columns(self) -> dict[str, Any]:
        """The columns of a row that say how the machine was before its run."""
        return {
            "load_before": self.load,
            "available_gb_before": self.available_gb,
            "thermal_state_before": self.state.thermal_state,
            "temperature_c_before": self.state.temperature_c,
            "power_source_before": self.state.power_source,
        }


def look(meters: Meters) -> Look:
    """Look at the machine for half a second."""
    start, load = meters.state(), Load(meters)
    meters.sleep(LOOK_S)
    busy, state = load.sample(), meters.state()
    return Look(busy, meters.available_gb(), state, state.counts_since(start))


def glance(meters: Meters) -> Look:
    """Look without taking time for it: load and counts stay unknown."""
    state = meters.state()
    return Look(None, meters.available_gb(), state, dict.fromkeys(state.counts_since(state)))


def check_disk(config: GuardsConfig, folder: Path, meters: Meters | None = None) -> None:
    """Raises `ResultsError` if too little room is left where results are written."""
    free = (meters or Meters()).free_gb(folder)
    if free < config.min_disk_gb:
        raise ResultsError(
            f"{free:.3g} GB are free where {folder} lies, below guards.min_disk_gb={config.min_disk_gb:g}; nothing is lost: "
            "make room, then run the same command again"
        )


def most_load(config: GuardsConfig, cores: int) -> float:
    """The load of others above which a run is suspect, in busy cores."""
    return cores / 2 if config.max_load is None else config.max_load


def unquiet(config: GuardsConfig, seen: Look, cores: int, memory_gb: float) -> tuple[str, str] | None:
    """What keeps a run from being trusted now: a word for it and a sentence; None if nothing does."""
    state = seen.state
    if not config.allow_battery and state.power_source in ("battery", "ups"):
        return "power", f"on {state.power_source} (guards.allow_battery=false)"
    if state.thermal_state in HOT:
        return "heat", f"thermal state {state.thermal_state}"
    if seen.counts["throttle_events"]:
        return "heat", "the processor is throttled"
    least = config.min_free_memory_share * memory_gb
    if seen.available_gb < least:
        share = f"guards.min_free_memory_share={config.min_free_memory_share:g}"
        return "memory", f"{seen.available_gb:.3g} GB of memory are available, below {least:.3g} ({share})"
    if state.memory_pressure == "critical":
        return "memory", "memory pressure critical"
    if (seen.counts["swap_out_bytes"] or 0) > SWAP_LOOK_BYTES:
        return "swap", "the machine is swapping"
    most = most_load(config, cores)
    if seen.load is not None and seen.load > most:
        return "load", f"others keep {seen.load:.1f} of {cores} cores busy, above {most:g} (guards.max_load)"
    return None


@dataclass(frozen=True)
class Quiet:
    """How the wait for a quiet machine ended."""

    waited_s: float
    reason: str | None  # why it is not quiet: the run is suspect; None if it is
    seen: Look


def wait_until_quiet(
    config: GuardsConfig,
    *,
    note: Note = lambda text: None,
    meters: Meters | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Quiet:
    """Wait until the machine is cool, quiet, on mains power and has memory, for `wait_s` at most or until `interrupted()`.

    `note` is told what it waits for. Raises `ResultsError` if it is still on battery then. Takes half a second on a quiet
    machine, and no time if `wait_s` is 0: then others' load before the run stays unknown.
    """
    meters = meters or Meters()
    begin, told = meters.now(), ""
    while True:
        seen = look(meters) if config.wait_s else glance(meters)
        trouble = unquiet(config, seen, meters.cores, meters.memory_gb)
        waited = meters.now() - begin if told else 0.0
        if trouble is None:
            if told:
                note(f"{QUIET} after {waited:.0f} s")
            return Quiet(waited, None, seen)
        word, text = trouble
        if waited + PAUSE_S + LOOK_S > config.wait_s or interrupted():
            if word == "power" and not interrupted():
                raise ResultsError(
                    f"{text}, after {waited:.0f} s still (guards.wait_s={config.wait_s:g}); nothing is lost: plug it in, "
                    "then run the same command again, or allow it with guards.allow_battery=true"
                )
            return Quiet(waited, text, seen)
        if word != told:
            note(f"{WAITING}, {config.wait_s:g} s at most: {text}")
            told = word
        meters.sleep(PAUSE_S)


def about_waiting(note: str) -> bool:
    """Whether a note is one of `wait_until_quiet`."""
    return note.startswith((WAITING, QUIET))


class Watch:
    """Looks at the machine while a run goes on. To be made before the run's process is started.

    `look` may be called often: it does something every two seconds.
    """

    def __init__(self, config: GuardsConfig, quiet: Quiet, meters: Meters | None = None) -> None:
        self._config, self._quiet, self._meters = config, quiet, meters or Meters()
        self._start = self._state = self._meters.state()
        self._load = Load(self._meters)
        self._next_load, self._next_state = self._meters.now() + PAUSE_S, self._meters.now() + STATE_S
        self._seen = [self._start]

    def look(self) -> None:
        """To be called while the run goes on."""
        if self._meters.now() >= self._next_load:
            self._load.sample()
            self._next_load = self._meters.now() + PAUSE_S
        if self._meters.now() >= self._next_state:
            self._take_state()

    def end(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """The columns that say how the machine was before, during and after the run, `waited_s`, and `suspect`.

        To be called when the run's process was collected. What the engine itself said of heat, power and swap (`figures`)
        holds, for it knows when the measurement began.
        """
        self._load.sample()
        self._take_state()
        own = {**vars(self._state), **self._state.counts_since(self._start)}
        row = {name: own[name] if figures.get(name) is None else figures[name] for name in own}
        row |= {**self._quiet.seen.columns(), "waited_s": self._quiet.waited_s, "load_during": self._load.mean()}
        reasons = [f"before: {self._quiet.reason}"] if self._quiet.reason else []
        reasons += suspicions(self._config, row, self._seen, self._meters.cores)
        return {**row, "suspect": "; ".join(reasons) or None}

    def _take_state(self) -> None:
        self._state = self._meters.state()
        self._seen.append(self._state)
        self._next_state = self._meters.now() + STATE_S


def suspicions(config: GuardsConfig, row: Mapping[str, Any], seen: Sequence[MachineState], cores: int) -> list[str]:
    """Why the figures of a run are not to be trusted, from its row and the states seen during it."""
    reasons = []
    hot = [s for s in (row["thermal_state"], *(state.thermal_state for state in seen)) if s in HOT]
    if hot:
        reasons.append(f"heat: thermal state {max(hot, key=HOT.index)}")
    if row["throttle_events"]:
        reasons.append(f"heat: throttled {row['throttle_events']} times")
    if (row["swap_out_bytes"] or 0) > SWAP_BYTES:
        reasons.append(f"swap: {row['swap_out_bytes'] / 1e6:.0f} MB swapped out")
    if "critical" in (row["memory_pressure"], *(state.memory_pressure for state in seen)):
        reasons.append("memory: pressure critical")
    power = [p for p in (row["power_source"], *(state.power_source for state in seen)) if p in ("battery", "ups")]
    if power and not config.allow_battery:
        reasons.append(f"power: on {power[0]}")
    most = most_load(config, cores)
    if row["load_during"] is not None and row["load_during"] > most:
        reasons.append(f"load: others kept {row['load_during']:.1f} of {cores} cores busy, above {most:g}")
    return reasons


@contextlib.contextmanager
def keep_awake(note: Note, platform: str = sys.platform) -> Iterator[None]:
    """Hold off the machine's sleep; what holds it off ends with this process, however that ends.

    `note` is told where nothing can. macOS: caffeinate, which watches this process. Linux: systemd-inhibit, around a `cat`
    that reads a pipe of ours.
    """
    holder, problem = _caffeinate() if platform == "darwin" else _inhibit()
    if problem:
        note(f"nothing holds off this machine's sleep: {problem}")
    try:
        yield
    finally:
        if holder:
            _end(holder)


def _end(holder: subprocess.Popen[bytes]) -> None:
    for pipe in filter(None, (holder.stdin, holder.stdout, holder.stderr)):
        pipe.close()
    if holder.stdin is None:  # caffeinate; the others end with their input
        holder.terminate()
    try:
        holder.wait(INHIBIT_S)
    except subprocess.TimeoutExpired:
        holder.kill()
        holder.wait()


def _caffeinate() -> tuple[subprocess.Popen[bytes] | None, str | None]:
    command = ["caffeinate", "-ims", "-w", str(os.getpid())]
    try:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True), None
    except OSError as e:
        return None, f"caffeinate cannot be run ({e.strerror})"


def _inhibit() -> tuple[subprocess.Popen[bytes] | None, str | None]:
    command = ["systemd-inhibit", "--what=sleep:idle", "--who=headrace", "--why=a search runs", "--mode=block"]
    command += ["sh", "-c", "echo held; exec cat >/dev/null"]  # it says so once the lock is had
    pipe = subprocess.PIPE
    try:
        holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
    except OSError as e:
        return None, f"systemd-inhibit cannot be run ({e.strerror})"
    assert holder.stdin and holder.stdout and holder.stderr
    ready = select.select([holder.stdout], [], [], INHIBIT_S)[0]
    if ready and holder.stdout.readline():
        return holder, None
    holder.kill()
    _, said = holder.communicate()
    lines = said.decode(errors="replace").strip().splitlines()
    return None, f"systemd-inhibit: {lines[-1] if lines else f'no answer within {INHIBIT_S:g} s'}"


@contextlib.contextmanager
def machine_lock(folder: Path) -> Iterator[None]:
    """Be the only search of this user on this machine, whatever its study; `folder` is told to who comes second.

    The lock dies with the process that holds it. Raises `ResultsError` if another search has it.
    """
    with _lock_file().open("a+") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            f.seek(0)
            holder = f.read().strip() or "unknown"
            raise ResultsError(
                f"another search runs on this machine ({holder}), and two at once would falsify each other's figures; wait "
                "for it, or allow it with guards.alone=false"
            ) from e
        f.truncate(0)
        f.write(f"process {os.getpid()}, {folder}")
        f.flush()
        yield


def _lock_file() -> Path:
    """In the user's cache folder, else among the temporary files; a home shared by machines has one for each."""
    name = f"search-{machine.host()}.lock"
    path = cached_file(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path
    except OSError:
        return Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}-{name}"
