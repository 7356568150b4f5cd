"""Rounds: files of each round, the next round after a verdict, and the external proposer's changes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from synthetic import SPACE

from harness.rounds.round import ExternalChanges, legal, rounds, space_path
from harness.space.changes import changed


@pytest.fixture
def study(tmp_path: Path) -> Any:
    bounds = {"one_token": 0.005, "all_experts": 0.08}
    return SimpleNamespace(
        folder=tmp_path, name="mill", rounds=3, space=SPACE, config={"knobs": {}}, bounds=bounds, memory_bound_gb=0.06
    )


def test_a_verdict_begins_the_next_round_from_its_base(study: Any) -> None:
    (first,) = rounds(study)
    assert (first.number, first.changes, first.saved_verdict(study)) == (1, (), None)
    assert rounds(study) == [first]
    change = changed(SPACE, {"kind": "fix", "knob": "io_mode", "value": "direct", "evidence": "faster"}, {})[1]
    first.save_verdict(study, True, "gain", 1, [change])
    second = rounds(study)[1]
    assert (second.number, second.changes) == (2, (change,))
    text = (study.folder / space_path(2)).read_text()
    assert text.startswith("# Round 2 of the study mill.\n# fix io_mode: ") and yaml.safe_load(text)["io_mode"] == "direct"
    second.save_verdict(study, False, "no gain", 1, [])
    third = rounds(study)[2]
    assert third.space == first.space and third.dropped == frozenset()
    third.save_verdict(study, False, "no gain", 1, [])
    assert len(rounds(study)) == 3, "the last round"


def test_external_changes_are_saved_until_the_end_of_the_round(study: Any) -> None:
    (first,) = rounds(study)
    assert first.external_changes(study) == ExternalChanges()
    change = changed(SPACE, {"kind": "drop", "knob": "evict_half_life", "value": 16.0, "evidence": "no effect"}, {})[1]
    first.save_external_changes(study, ExternalChanges(8, (change,), ("a reason",)))
    assert first.external_changes(study) == ExternalChanges(8, (change,), ("a reason",))


def test_the_legal_cache_is_within_memory_and_experts(study: Any) -> None:
    assert legal(study) == {"cache_gb": (0.005, 0.06)}
    study.memory_bound_gb = 1.0
    assert legal(study) == {"cache_gb": (0.005, 0.08)}
