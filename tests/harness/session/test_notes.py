"""Notes at the start of a session: other commits in the rows, and more memory than the machine has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from harness.machine.identity import identity, memory_gb
from harness.session.notes import start_notes


def plan(gb: float | None = None) -> Any:
    return SimpleNamespace(
        config={"device": {"memory_gb": gb}}, space=SimpleNamespace(fixed={}), automatic=None, device_profile=None
    )


def test_notes_name_other_commits_and_a_memory_limit_beyond_the_machine() -> None:
    assert start_notes(plan(), [{"commit": identity()["commit"]}, {"commit": None}]) == []
    notes = start_notes(plan(memory_gb() + 1), [{"commit": "a" * 40}])
    assert notes[0] == "earlier rows were measured with commit aaaaaaaaa"
    assert "is more than this machine has" in notes[1]
