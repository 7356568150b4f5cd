"""Notes at the start of a session: other commits in the rows, and more memory than the machine has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from harness.machine.identity import identity, memory_gb
from harness.session.notes import kept_note, start_notes


def plan(gb: float | None = None) -> Any:
    return SimpleNamespace(
        config={"device": {"memory_gb": gb}, "engine": {"command": None, "module": "engine"}}, prefill="real",
        space=SimpleNamespace(fixed={}), automatic=None, device_profile=None,
    )  # fmt: skip


def test_notes_name_other_commits_and_a_memory_limit_beyond_the_machine() -> None:
    assert start_notes(plan(), [{"commit": identity()["commit"]}, {"commit": None}]) == []
    notes = start_notes(plan(memory_gb() + 1), [{"commit": "a" * 40}])
    assert notes[0] == "earlier rows were measured with commit aaaaaaaaa"
    assert "is more than this machine has" in notes[1]


def test_the_size_of_kept_prompts_is_told() -> None:
    sizes = SimpleNamespace(context=500, moe_layers=60, top_k=8, parts_gb=SimpleNamespace(kv=0.01))
    study: Any = SimpleNamespace(
        config={"engine": {"command": None, "module": "engine"}, "protocol": {"kept_gb": 8.0}}, prefill="restored",
        engine=SimpleNamespace(footprint=lambda checkpoint, knobs: sizes), checkpoint="there",
        judge=SimpleNamespace(texts=[None] * 20),
    )  # fmt: skip
    assert kept_note(study) == (
        "prompts are kept on the disk: at most 0.21 GB for each setting of the lossy knobs (20 texts of up to 500 tokens), "
        "8 GB in all (protocol.kept_gb)"
    )
    study.prefill = "real"
    assert kept_note(study) is None
    study.prefill, study.config["engine"] = "restored", {"command": "./measure", "module": "engine"}
    assert kept_note(study) is None
