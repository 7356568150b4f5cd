"""State of a search: `state.json` beside the rows, with what runs at this moment, for `harness.status`.

Nothing depends on it, because the rows hold the results. It is not synced to the disk, and a full disk does not end the
search when it is written.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from engine.system import atomic
from engine.system.strict_json import from_json
from harness import ResultsError
from harness.machine.identity import boot_id
from harness.machine.processes import created
from harness.run.job import Job

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # phases of a search that has ended
ENDED = (FINISHED, STOPPED, FAILED)


def write_state(folder: Path, **fields: Any) -> None:
    """Replace the state by `fields` and the identity of this process: pid, created, boot_id.

    `harness.status` reads phase (any word, or one of `ENDED`), round, trial, run, origin, since_s (when this phase or run
    began) and started_s (when the command began), both on the clock `clocks.awake`, ended_s (when its last run ended, on
    `clocks.continuous`), first_sequence (of the command's rows), session and session_s (as in `columns.TIME_COLUMNS`),
    hours, message, and the fields of `counts.Progress`.
    """
    pid = os.getpid()
    content = {**fields, "pid": pid, "created": created(pid), "boot_id": boot_id()}
    with contextlib.suppress(OSError):
        atomic.write_json(folder / "state.json", content, durable=False)


def job_fields(job: Job) -> dict[str, Any]:
    """The fields of the run in progress."""
    origin = job.origin or job.proposal.origin
    return {"round": job.round, "trial": job.proposal.trial, "run": job.run, "origin": origin}


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state last written; None if there is none. Raises `ResultsError` if it is damaged."""
    path = folder / "state.json"
    try:
        state = from_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict):
        raise ResultsError(f"{path} is damaged; the next start of the search replaces it")
    return state
