"""Hours: where the time of a study went, summed over its rows, against the clock of its sessions.

Every second of a recorded run is in exactly one line: what the run's process and its supervisor measured, and "not
attributed" for the rest. Rows of older versions have no parts; their time is "not recorded" and outside the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

RUN_PARTS = {  # parts of a complete run: line of the table -> column
    "starting": "start_s", "preparing": "prepare_s", "loading": "load_s", "prefix": "prefix_s", "filling": "fill_s",
    "timing": "timed_s", "scoring": "score_s", "ending": "end_s",
}  # fmt: skip
AROUND = {"cooling down": "cool_down_s", "waiting for quiet": "waited_s", "between runs": "between_s"}
ASLEEP, LOST, REST, UNKNOWN = "asleep", "lost to failures", "not attributed", "not recorded"
NEEDED = (  # columns of a row
    "session", "session_s", "origin", "status", "wall_s", "slept_s", "saved_s", "lost_s", *RUN_PARTS.values(),
    *AROUND.values(),
)  # fmt: skip
COMPLETE = ("ok", "stopped")  # the time of a run with another end is lost
TOLERANCE, TOLERANCE_S = 0.02, 0.5  # between the sum and the clock: a share of the clock, and seconds for each session
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """Seconds of one part: of all runs, and of the confirmation runs among them."""

    name: str
    s: float
    confirming_s: float


@dataclass(frozen=True)
class Hours:
    """The time budget of a study. `lines` have all recorded time, the parts of runs first."""

    lines: tuple[Line, ...]
    runs: int  # recorded runs that had a process
    run_s: float  # from their starts to their ends
    clock_s: float  # of the sessions that recorded them
    sessions: int
    saved_s: float
    unknown_s: float  # run time of rows without parts
    unknown_runs: int

    @property
    def sum_s(self) -> float:
        """Seconds of all lines."""
        return sum(line.s for line in self.lines)

    @property
    def confirming_s(self) -> float:
        """Seconds of all lines that confirmation runs took."""
        return sum(line.confirming_s for line in self.lines)

    @property
    def timed_share(self) -> float | None:
        """Timed decoding as a share of the run time; None without recorded runs."""
        return self.of("timing") / self.run_s if self.run_s else None

    @property
    def agrees(self) -> bool:
        """Whether the sum is the clock within the tolerance."""
        return abs(self.sum_s - self.clock_s) <= TOLERANCE * self.clock_s + TOLERANCE_S * self.sessions

    def of(self, name: str) -> float:
        """Seconds of the line `name`."""
        return next(line.s for line in self.lines if line.name == name)

    def as_dict(self) -> dict[str, Any]:
        """The budget as JSON-ready values, in seconds."""
        return {
            "parts_s": {line.name: line.s for line in self.lines}, "sum_s": self.sum_s, "clock_s": self.clock_s,
            "confirmation_s": self.confirming_s, "run_s": self.run_s, "runs": self.runs, "timed_share": self.timed_share,
            "saved_s": self.saved_s, "not_recorded_s": self.unknown_s, "not_recorded_runs": self.unknown_runs,
        }  # fmt: skip


def hours(rows: Iterable[Row], session: str | None = None, session_s: float | None = None) -> Hours:
    """The time budget of rows with the columns `NEEDED`. `session` and `session_s` are the newest session and its clock,
    which continues after its last row."""
    names = [*RUN_PARTS, REST, ASLEEP, LOST, *AROUND]
    every, confirming = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    clocks: dict[str, float] = {}
    runs = unknown_runs = 0
    run_s = unknown_s = saved_s = 0.0
    for row in rows:
        took = _s(row, "wall_s") + _s(row, "slept_s")
        saved_s += _s(row, "saved_s")
        if not isinstance(row["session"], str):
            unknown_s, unknown_runs = unknown_s + took, unknown_runs + bool(took)
            continue
        clocks[row["session"]] = max(clocks.get(row["session"], 0.0), _s(row, "session_s"))
        runs, run_s = runs + bool(took), run_s + took + _s(row, "lost_s")
        for name, seconds in parts(row).items():
            every[name] += seconds
            if row["origin"] == "confirm":
                confirming[name] += seconds
    if session in clocks and session_s is not None:
        every["between runs"] += max(0.0, session_s - clocks[session])
        clocks[session] = max(clocks[session], session_s)
    lines = tuple(Line(name, every[name], confirming[name]) for name in names)
    return Hours(lines, runs, run_s, sum(clocks.values()), len(clocks), saved_s, unknown_s, unknown_runs)


def parts(row: Row) -> dict[str, float]:
    """Seconds of one recorded row by line. Their sum is the run's time and the time before it since the last run."""
    took, slept = _s(row, "wall_s"), _s(row, "slept_s")
    found = {name: _s(row, column) for name, column in AROUND.items()} | {LOST: _s(row, "lost_s")}
    if row["status"] not in COMPLETE:
        return found | {LOST: found[LOST] + took + slept}
    inside = {name: _s(row, column) for name, column in RUN_PARTS.items()}
    rest = took + slept - sum(inside.values())
    asleep = min(slept, max(0.0, rest))  # while the search stood still its run may have gone on
    return found | inside | {ASLEEP: asleep, REST: rest - asleep}


def _s(row: Row, name: str) -> float:
    value = row.get(name)
    return 0.0 if value is None or value != value else float(value)
