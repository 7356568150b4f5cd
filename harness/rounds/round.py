"""The space of each round, kept as `rounds/NN/space.yaml`, the changes that made it, and the verdict on the round.

A file that is there was written whole, so that a resumed search goes on in the round in which it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.results.files import write_json, write_text
from harness.space.changes import Change, applied
from harness.space.parse import space_from_config
from harness.space.space import Space
from harness.study.study import Study


@dataclass(frozen=True)
class Outside:
    """What a proposer outside has said in a round: its changes, what was refused, and after how many settings it came."""

    asked: int = 0
    changes: tuple[Change, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Round:
    """A round: its number, its space, and the changes that it believed in."""

    number: int
    space: Space
    believed: tuple[Change, ...] = ()

    @property
    def dropped(self) -> frozenset[str]:
        """The knobs that were found to be idle: what they were held at before does not matter."""
        return frozenset(c.knob for c in self.believed if c.kind == "drop")

    def outside(self, study: Study) -> Outside:
        """What the proposer outside has said in this round."""
        path = _folder(study, self.number) / "proposer.json"
        if not path.exists():
            return Outside()
        said = json.loads(path.read_text())
        return Outside(said["asked"], tuple(Change(**c) for c in said["changes"]), tuple(said["refused"]))

    def hear(self, study: Study, outside: Outside) -> None:
        """Keep what the proposer outside has said."""
        write_json(_folder(study, self.number) / "proposer.json", dataclasses.asdict(outside))

    def verdict(self, study: Study) -> dict[str, Any] | None:
        """What became of it; None as long as it goes on."""
        path = _folder(study, self.number) / "verdict.json"
        return json.loads(path.read_text()) if path.exists() else None

    def end(self, study: Study, kept: bool, evidence: str, base: int, proposed: Sequence[Change]) -> None:
        """Write the verdict, from which the next round is made: the space of round `base` with the changes proposed."""
        content = {"kept": kept, "evidence": evidence, "base": base, "proposed": [dataclasses.asdict(c) for c in proposed]}
        write_json(_folder(study, self.number) / "verdict.json", content)


def rounds(study: Study) -> list[Round]:
    """The rounds that were begun; the first, and one that the last one's verdict asks for, are begun now."""
    found = [_round(study, 1) or _begin(study, 1, study.space, ())]
    while (verdict := found[-1].verdict(study)) is not None and found[-1].number < study.rounds:
        number = found[-1].number + 1
        changes = tuple(Change(**c) for c in verdict["proposed"])
        base = found[verdict["base"] - 1].space
        found.append(_round(study, number) or _begin(study, number, applied(base, changes), changes))
    return found


def legal(study: Study) -> dict[str, tuple[float, float]]:
    """How far the machine lets a knob go, beyond the knobs' own limits."""
    most = min(study.memory_bound_gb, study.bounds["all_experts"] or study.memory_bound_gb)
    return {"cache_gb": (study.bounds["one_token"], most)}


def space_file(study: Study, number: int) -> Path:
    """Where the space of a round lies: a file for `search_space=`."""
    return _folder(study, number) / "space.yaml"


def _begin(study: Study, number: int, space: Space, believed: Sequence[Change]) -> Round:
    """Write a round, and read it: it is searched as a resumed search will find it."""
    path = space_file(study, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_name("round.json"), {"believed": [dataclasses.asdict(c) for c in believed]})
    moves = {k: v for k, v in space.as_config().items() if k not in study.config["knobs"]}
    lines = [f"# Round {number} of the study {study.name}.", *(f"# {c}: {c.evidence}" for c in believed)]
    write_text(path, "\n".join(lines) + "\n" + yaml.safe_dump(moves, sort_keys=False, default_flow_style=None))
    one = _round(study, number)
    assert one is not None
    return one


def _round(study: Study, number: int) -> Round | None:
    """A round from its files; None if it was not begun."""
    path = space_file(study, number)
    if not path.exists():
        return None
    said: Mapping[str, Any] = json.loads(path.with_name("round.json").read_text())
    space = space_from_config(yaml.safe_load(path.read_text()), study.config["knobs"], study.bounds)
    return Round(number, replace(space, footprint=study.space.footprint), tuple(Change(**c) for c in said["believed"]))


def _folder(study: Study, number: int) -> Path:
    return study.folder / "rounds" / f"{number:02d}"
