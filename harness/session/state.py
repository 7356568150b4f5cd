"""What a search does at this moment, in `state.json` beside its rows: for `harness.status` in another terminal.

It is a help and no truth: the rows are. So it is not synced to the disk, and a full disk does not end the search for it.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from engine.system import atomic
from harness import ResultsError
from harness.machine.identity import boot_id
from harness.machine.processes import created

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"  # the phases in which no search runs any more
ENDED = (FINISHED, STOPPED, FAILED)


def write_state(folder: Path, **fields: Any) -> None:
    """Replace the state by `fields` and the identity of this process: pid, created, boot_id.

    `harness.status` knows phase (any word, or one of `ENDED`), round, trial, run, origin, since (Unix time at which this
    phase or run began), started (Unix time of the command's start), hours, message, and the fields of `counts.Progress`.
    """
    pid = os.getpid()
    content = {**fields, "pid": pid, "created": created(pid), "boot_id": boot_id()}
    with contextlib.suppress(OSError):
        atomic.write_json(folder / "state.json", content, durable=False)


def read_state(folder: Path) -> dict[str, Any] | None:
    """The state last written; None if there is none. Raises `ResultsError` if it is damaged."""
    path = folder / "state.json"
    try:
        state = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        state = None
    if not isinstance(state, dict):
        raise ResultsError(f"{path} is damaged; the next start of the search writes it anew")
    return state
