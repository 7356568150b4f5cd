"""Guards of a run: the conditions before it, the observation during it, and the reasons that make its figures suspect.

Before a run: free disk space, available memory, a cool machine on mains power, little load of other processes. During a
run: load, heat, power source, swapping, sleep. During a run there is a sample every second. A look before a run covers half
a second or more. It begins with the last sample of the run before, or with its end where a state of the machine is
expensive, if that is not long ago. A reason seen by such a look is looked at once more, because it may be over.

Heat is judged by the thermal state and by the finer thermal pressure. Swap is judged by its rate and by how full it is:
macOS can report a normal memory pressure while swap is full.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.system.machine_state import MachineState
from harness import ResultsError
from harness.schema import GuardsConfig

from .load import LOOK_S, Beginning, CpuLoad, Look, Meters, glance, look

HOT = ("serious", "critical")
THROTTLED = ("moderate", "heavy", "trapping", "sleeping")  # thermal pressures; throttling begins at moderate
SWAP_BYTES = 32_000_000  # a run that swaps out less is not suspect
SWAP_MB_S = 1.0  # nor one that never swaps out faster, unless it swaps out SWAP_SHARE of the machine's memory
SWAP_SHARE = 0.01
SWAP_LOOK_BYTES = 1_000_000  # a machine that swaps out more in `LOOK_S` is not quiet
FULL_SWAP, LITTLE_MEMORY = 0.9, 0.2  # swap this full leaves no reserve once less than this share of the memory is available
WAITING, QUIET = "waiting for a quiet machine", "quiet again"
PAUSE_S = 2.0  # between two looks while waiting
SAMPLE_S = 1.0  # between two samples during a run
STATE_S = 20.0  # between two states during a run: a state costs four short processes on macOS
Note = Callable[[str], None]


def check_disk(config: GuardsConfig, folder: Path, meters: Meters | None = None) -> None:
    """Raises `ResultsError` if the disk that holds `folder` has less than `min_disk_gb` free."""
    free = (meters or Meters()).free_gb(folder)
    if free < config.min_disk_gb:
        raise ResultsError(
            f"{free:.3g} GB are free on the disk of {folder}, below guards.min_disk_gb={config.min_disk_gb:g}; all rows are "
            "saved: make room, then run the same command again"
        )


def most_load(config: GuardsConfig, cores: int) -> float:
    """The load of other processes, in busy cores, above which a run is suspect."""
    return cores / 2 if config.max_load is None else config.max_load


def unquiet(config: GuardsConfig, seen: Look, cores: int, memory_gb: float) -> tuple[str, str] | None:
    """Why a run started now would be suspect: a keyword and a sentence; None on a quiet machine."""
    state = seen.state
    if not config.allow_battery and state.power_source in ("battery", "ups"):
        return "power", f"on {state.power_source} (guards.allow_battery=false)"
    if state.thermal_state in HOT:
        return "heat", f"thermal state {state.thermal_state}"
    if state.thermal_pressure in THROTTLED:
        return "heat", f"thermal pressure {state.thermal_pressure}: the machine is throttled"
    if seen.counts["throttle_events"]:
        return "heat", "the processor is throttled"
    least = config.min_free_memory_share * memory_gb
    if seen.available_gb < least:
        share = f"guards.min_free_memory_share={config.min_free_memory_share:g}"
        return "memory", f"{seen.available_gb:.3g} GB of memory are available, below {least:.3g} ({share})"
    if state.memory_pressure == "critical":
        return "memory", "memory pressure critical"
    swapped = seen.counts["swap_out_bytes"] or 0
    if swapped * LOOK_S > SWAP_LOOK_BYTES * seen.seconds:
        return "swap", f"the machine swaps out {swapped / 1e6 / seen.seconds:.0f} MB/s"
    full = swap_share(state)
    if full is not None and full >= FULL_SWAP and seen.available_gb < LITTLE_MEMORY * memory_gb:
        return "swap", (
            f"swap is {full:.0%} full and {seen.available_gb:.3g} GB of memory are available; end other programs"
        )
    most = most_load(config, cores)
    if seen.load is not None and seen.load > most:
        return "load", f"other processes keep {seen.load:.1f} of {cores} cores busy, above {most:g} (guards.max_load)"
    return None


def swap_share(state: MachineState) -> float | None:
    """Share of the swap that is in use; None without swap. macOS makes its swap larger as it fills, while the disk has
    room, so a high share alone is no reason."""
    used, total = state.swap_used_bytes, state.swap_total_bytes
    return used / total if used is not None and total else None


@dataclass(frozen=True)
class Quiet:
    """Result of the wait for a quiet machine."""

    waited_s: float
    reason: str | None  # why the run is suspect; None on a quiet machine
    seen: Look


def wait_until_quiet(
    config: GuardsConfig,
    *,
    note: Note = lambda text: None,
    meters: Meters | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    begun: Beginning | None = None,
) -> Quiet:
    """Wait until the machine is cool, quiet, on mains power and has memory, at most `wait_s` or until `interrupted()`.

    `note` receives each kind of reason once. On a quiet machine it takes what is left of half a second since the look
    `begun`, and no time if `wait_s` is 0; the load before the run is then unknown. A reason that the look `begun` sees has
    to be seen by a fresh one. Raises `ResultsError` if the machine is still on battery after the wait.
    """
    meters = meters or Meters()
    begin, noted = meters.now(), ""
    while True:
        seen = look(meters, begun) if config.wait_s else glance(meters)
        trouble = unquiet(config, seen, meters.cores, meters.memory_gb)
        if trouble is not None and begun is not None:
            begun = None
            continue
        begun = None
        waited = meters.now() - begin if noted else 0.0
        if trouble is None:
            if noted:
                note(f"{QUIET} after {waited:.0f} s")
            return Quiet(waited, None, seen)
        word, text = trouble
        if waited + PAUSE_S + LOOK_S > config.wait_s or interrupted():
            if word == "power" and not interrupted():
                raise ResultsError(
                    f"{text}, after a wait of {waited:.0f} s (guards.wait_s={config.wait_s:g}); all rows are saved: connect "
                    "mains power and run the same command again, or set guards.allow_battery=true"
                )
            return Quiet(waited, text, seen)
        if word != noted:
            note(f"{WAITING}, {config.wait_s:g} s at most: {text}")
            noted = word
        meters.sleep(PAUSE_S)


def about_waiting(note: str) -> bool:
    """Whether a note comes from `wait_until_quiet`."""
    return note.startswith((WAITING, QUIET))


class Watch:
    """Observes the machine during a run. Create it before the run's process starts."""

    def __init__(self, config: GuardsConfig, quiet: Quiet, meters: Meters | None = None) -> None:
        self._config, self._quiet, self._meters = config, quiet, meters or Meters()
        self._start = self._state = self._meters.state()
        self._load = CpuLoad(self._meters)
        self._next_load, self._next_state = self._meters.now() + SAMPLE_S, self._meters.now() + STATE_S
        self._sampled: Beginning | None = None
        self._seen = [self._start]
        self._state_at, self._swap_mb_s = self._meters.now(), None if self._start.swap_out_bytes is None else 0.0

    def look(self) -> None:
        """Take a sample if one is due. Call this often during the run."""
        if self._meters.now() >= self._next_load:
            self._load.sample()
            self._next_load = self._meters.now() + SAMPLE_S
            self._sampled = Beginning(self._meters, self._load) if self._meters.cheap_state else None
        if self._meters.now() >= self._next_state:
            self._take_state()

    def beginning(self) -> Beginning:
        """The beginning of the look before the next run: the last sample, or now. Call this when the run has ended."""
        if self._sampled is None or self._sampled.age_s(self._meters) > 2 * SAMPLE_S:
            return Beginning(self._meters)
        self._sampled.run_ended(self._meters)
        return self._sampled

    def end(self, figures: Mapping[str, Any], slept_s: float = 0.0) -> dict[str, Any]:
        """The columns that describe the machine before, during and after the run, with `waited_s` and `suspect`.

        Call this after the run's process has ended. The engine's own `figures` of heat, power and swap take precedence,
        because the engine excludes loading.
        """
        self._load.sample()
        self._take_state()
        own = {**vars(self._state), **self._state.counts_since(self._start)}
        row = {name: own[name] if figures.get(name) is None else figures[name] for name in own}
        row |= {**self._quiet.seen.columns(), "waited_s": self._quiet.waited_s, "load_during": self._load.mean()}
        row |= {"run_swap_out_bytes": own["swap_out_bytes"], "swap_out_mb_s": self._swap_mb_s}
        reasons = [f"before: {self._quiet.reason}"] if self._quiet.reason else []
        row["slept_s"] = slept_s
        reasons += suspicions(self._config, row, self._seen, self._meters.cores, self._meters.memory_gb)
        return {**row, "suspect": "; ".join(reasons) or None}

    def _take_state(self) -> None:
        before, at = self._state, self._meters.now()
        self._state = self._meters.state()
        swapped, seconds = self._state.counts_since(before)["swap_out_bytes"], at - self._state_at
        if swapped is not None and seconds > 0:
            self._swap_mb_s = max(self._swap_mb_s or 0.0, swapped / 1e6 / seconds)
        self._state_at = at
        self._seen.append(self._state)
        self._next_state = self._meters.now() + STATE_S


def suspicions(
    config: GuardsConfig, row: Mapping[str, Any], seen: Sequence[MachineState], cores: int, memory_gb: float
) -> list[str]:
    """Why the figures of a run are suspect, from its row and the states `seen` during it."""
    reasons = []
    if row.get("slept_s"):
        reasons.append(f"sleep: the machine slept or stood still for {row['slept_s']:.0f} s")
    hot = [s for s in (row["thermal_state"], *(state.thermal_state for state in seen)) if s in HOT]
    if hot:
        reasons.append(f"heat: thermal state {max(hot, key=HOT.index)}")
    pressures = (row["thermal_pressure"], *(state.thermal_pressure for state in seen))
    throttled = [p for p in pressures if p in THROTTLED]
    if throttled:
        reasons.append(f"heat: thermal pressure {max(throttled, key=THROTTLED.index)}")
    if row["throttle_events"]:
        reasons.append(f"heat: throttled {row['throttle_events']} times")
    reasons += _swap_suspicions(row, seen[-1], memory_gb)
    if "critical" in (row["memory_pressure"], *(state.memory_pressure for state in seen)):
        reasons.append("memory: pressure critical")
    power = [p for p in (row["power_source"], *(state.power_source for state in seen)) if p in ("battery", "ups")]
    if power and not config.allow_battery:
        reasons.append(f"power: on {power[0]}")
    most = most_load(config, cores)
    if row["load_during"] is not None and row["load_during"] > most:
        reasons.append(f"load: other processes kept {row['load_during']:.1f} of {cores} cores busy, above {most:g}")
    return reasons


def _swap_suspicions(row: Mapping[str, Any], end: MachineState, memory_gb: float) -> list[str]:
    """Much swapped out, fast or as a share of the machine's memory; or any of it into a swap that is nearly full."""
    swapped, rate, full = row["swap_out_bytes"] or 0, row["swap_out_mb_s"], swap_share(end)
    much = swapped > SWAP_BYTES and (rate is None or rate >= SWAP_MB_S or swapped > SWAP_SHARE * memory_gb * 1e9)
    if much:
        speed = f", up to {rate:.0f} MB/s" if rate else ""
        return [f"swap: {swapped / 1e6:.0f} MB swapped out{speed}"]
    if swapped > SWAP_LOOK_BYTES and full is not None and full >= FULL_SWAP:
        return [f"swap: {swapped / 1e6:.0f} MB swapped out into a swap that is {full:.0%} full"]
    return []
