"""State of a search: replaced as a whole, with the identity of the process; damage is reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from harness import ResultsError
from harness.propose.ask_tell import Proposal
from harness.run.job import Job
from harness.session.state import job_fields, read_state, write_state


def test_the_state_names_the_process_and_the_run(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    write_state(tmp_path, phase="exploring", **job_fields(Job(Proposal(4, "sampler", {}), 2, "confirm", 3)))
    state = read_state(tmp_path)
    assert state is not None and state["pid"] == os.getpid()
    assert [state[name] for name in ("phase", "trial", "run", "origin", "round")] == ["exploring", 4, 2, "confirm", 3]


def test_a_full_disk_or_damage(tmp_path: Path) -> None:
    write_state(tmp_path / "no-such-folder", phase="exploring")
    (tmp_path / "state.json").write_text("[1")
    with pytest.raises(ResultsError, match=r"is damaged; the next start of the search replaces it"):
        read_state(tmp_path)
