"""Record of the run in flight: `running.json` holds the request, `child.json` the process, until the row is written.

After a restart the record tells why a run has no row. If the machine went down with it, the run is a crash and is not tried
again. If only the search ended, the run is tried again, `MAX_STARTS` times in all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.system.strict_json import from_json
from harness.machine.identity import boot_id
from harness.machine.processes import alive, created, end_group
from harness.results.files import write_json

from .job import Job

MAX_STARTS = 3


@dataclass(frozen=True)
class Start:
    """The number of a run's start, whether the machine went down during the start before, and the known seconds that earlier
    starts took without a row."""

    attempt: int
    machine_fell: bool
    lost_s: float = 0.0


class InFlight:
    """The record in a study's folder."""

    def __init__(self, folder: Path) -> None:
        self.request, self._child = folder / "running.json", folder / "child.json"

    def start(self, job: Job) -> Start:
        """The start of a job, from the record of an interrupted run. Ends a child that outlived its search."""
        try:
            request = from_json(self.request.read_text())
        except (OSError, ValueError):
            return Start(1, False)
        self._end_orphan()
        if (request["trial"], request["run"], request["knobs"]) != (job.proposal.trial, job.run, job.proposal.values):
            return Start(1, False)  # another setting has the number after the storage was lost
        fell = request["attempt"] > 0 and None not in (request["boot_id"], boot_id()) and request["boot_id"] != boot_id()
        return Start(int(request["attempt"]) + 1, fell, float(request.get("lost_s") or 0.0))

    def write(self, request: Mapping[str, Any]) -> None:
        """Record a request before its child starts."""
        write_json(self.request, request)

    def write_child(self, pid: int) -> None:
        """Record the child's process."""
        write_json(self._child, {"pid": pid, "created": created(pid)})

    def take_back(self, request: Mapping[str, Any], spent_s: float) -> None:
        """Do not count this start, which took `spent_s`, since the setting did not cause its end."""
        lost_s = (request.get("lost_s") or 0.0) + spent_s
        write_json(self.request, {**request, "attempt": request["attempt"] - 1, "lost_s": lost_s})

    def clear(self) -> None:
        """Remove the record once the row is written."""
        self.request.unlink(missing_ok=True)

    def _end_orphan(self) -> None:
        try:
            child = from_json(self._child.read_text())
            if alive(child["pid"], child["created"]):
                end_group(child["pid"])
        except (OSError, ValueError, KeyError):
            pass
