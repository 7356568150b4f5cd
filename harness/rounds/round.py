"""Rounds: the space of each round as `rounds/NN/space.yaml`, the changes that led to it, and its verdict.

Each file is written atomically, so a resumed search finds every round either not begun or complete.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from engine.system.strict_json import from_json, refuse_not_finite
from harness.results.files import write_json, write_text
from harness.space.changes import Change, applied
from harness.space.parse import space_from_config
from harness.space.space import Space
from harness.study.study import Study


@dataclass(frozen=True)
class ExternalChanges:
    """The external proposer's part in a round, and the number of settings measured before its last call."""

    asked: int = 0
    changes: tuple[Change, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Round:
    """A round: its number, its space, and its hypothesis, which is the changes that led to this space."""

    number: int
    space: Space
    changes: tuple[Change, ...] = ()

    @property
    def dropped(self) -> frozenset[str]:
        """The knobs dropped for lack of effect. A row's value of such a knob does not matter."""
        return frozenset(c.knob for c in self.changes if c.kind == "drop")

    def external_changes(self, study: Study) -> ExternalChanges:
        """The saved changes of the external proposer in this round."""
        path = _folder(study, self.number) / "proposer.json"
        if not path.exists():
            return ExternalChanges()
        saved = from_json(path.read_text())
        return ExternalChanges(saved["asked"], tuple(Change(**c) for c in saved["changes"]), tuple(saved["refused"]))

    def save_external_changes(self, study: Study, external: ExternalChanges) -> None:
        """Save the changes of the external proposer until the end of the round."""
        write_json(_folder(study, self.number) / "proposer.json", dataclasses.asdict(external))

    def saved_verdict(self, study: Study) -> dict[str, Any] | None:
        """The content of `verdict.json`; None until the round has ended."""
        path = _folder(study, self.number) / "verdict.json"
        return from_json(path.read_text()) if path.exists() else None

    def save_verdict(self, study: Study, kept: bool, evidence: str, base: int, proposed: Sequence[Change]) -> None:
        """End the round. The next round gets the space of round `base` with the proposed changes."""
        content = {"kept": kept, "evidence": evidence, "base": base, "proposed": [dataclasses.asdict(c) for c in proposed]}
        write_json(_folder(study, self.number) / "verdict.json", content)


def rounds(study: Study) -> list[Round]:
    """All rounds so far. Begins the first round, and the next one if the last has a verdict."""
    found = [_read(study, 1) or _begin(study, 1, study.space, ())]
    while (verdict := found[-1].saved_verdict(study)) is not None and found[-1].number < study.rounds:
        number = found[-1].number + 1
        changes = tuple(Change(**c) for c in verdict["proposed"])
        base = found[verdict["base"] - 1].space
        found.append(_read(study, number) or _begin(study, number, applied(base, changes), changes))
    return found


def legal(study: Study) -> dict[str, tuple[float, float]]:
    """The range that this machine allows for a knob: knob -> (lowest, highest)."""
    most = min(study.memory_bound_gb, study.bounds["all_experts"] or study.memory_bound_gb)
    return {"cache_gb": (study.bounds["one_token"], most)}


def space_path(number: int) -> str:
    """The path of a round's space within the study's folder; a file for `search_space=`."""
    return f"rounds/{number:02d}/space.yaml"


def _begin(study: Study, number: int, space: Space, changes: Sequence[Change]) -> Round:
    """Write a round's files, then read them, so an uninterrupted search uses the same space as a resumed one."""
    path = study.folder / space_path(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_name("round.json"), {"changes": [dataclasses.asdict(c) for c in changes]})
    moves = {k: v for k, v in space.as_config().items() if k not in study.config["knobs"]}
    lines = [f"# Round {number} of the study {study.name}.", *(f"# {c}: {c.evidence}" for c in changes)]
    refuse_not_finite(moves, f"the space in {path.parent.name}/{path.name}")
    write_text(path, "\n".join(lines) + "\n" + yaml.safe_dump(moves, sort_keys=False, default_flow_style=None))
    begun = _read(study, number)
    assert begun is not None
    return begun


def _read(study: Study, number: int) -> Round | None:
    """A round from its files; None if it has not begun."""
    path = study.folder / space_path(number)
    if not path.exists():
        return None
    saved: Mapping[str, Any] = from_json(path.with_name("round.json").read_text())
    space = space_from_config(yaml.safe_load(path.read_text()), study.config["knobs"], study.bounds)
    return Round(number, replace(space, footprint=study.space.footprint), tuple(Change(**c) for c in saved["changes"]))


def _folder(study: Study, number: int) -> Path:
    return (study.folder / space_path(number)).parent
