"""The space of each round, kept as `rounds/NN/space.yaml`, what changed in it, and the verdict on the round.

A file that is there was written whole, so that a resumed search goes on in the round in which it was.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from .manifest import write_json, write_text
from .plan import Plan
from .space import Space, space_from_config


@dataclass(frozen=True)
class Round:
    """A round: its number, its space, what it believed (one line a change) and which knobs were dropped as idle."""

    number: int
    space: Space
    believed: tuple[str, ...] = ()
    dropped: frozenset[str] = frozenset()

    def folder(self, plan: Plan) -> Path:
        return plan.folder / "rounds" / f"{self.number:02d}"

    def verdict(self, plan: Plan) -> dict[str, Any] | None:
        """What became of it; None as long as it runs."""
        path = self.folder(plan) / "verdict.json"
        return json.loads(path.read_text()) if path.exists() else None

    def end(self, plan: Plan, verdict: Mapping[str, Any]) -> None:
        write_json(self.folder(plan) / "verdict.json", verdict)


def begin(plan: Plan, one: Round) -> Round:
    """Put a round's space on the disk."""
    folder = one.folder(plan)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "round.json", {"believed": list(one.believed), "dropped": sorted(one.dropped)})
    moves = one.space.as_config()
    lines = [f"# Round {one.number} of the study {plan.name}.", *(f"# {line}" for line in one.believed)]
    write_text(folder / "space.yaml", "\n".join(lines) + "\n" + yaml.safe_dump(moves, sort_keys=False, allow_unicode=True))
    return one


def rounds(plan: Plan) -> list[Round]:
    """The rounds that were begun, the first one made if there is none."""
    found: list[Round] = []
    for number in range(1, 1 + max(1, len(list((plan.folder / "rounds").glob("*/space.yaml"))))):
        one = Round(number, plan.space)
        if not (one.folder(plan) / "space.yaml").exists():
            found.append(begin(plan, one))
            continue
        if number > 1:
            said = json.loads((one.folder(plan) / "round.json").read_text())
            config = yaml.safe_load((one.folder(plan) / "space.yaml").read_text())
            knobs = {k: v for k, v in plan.config["knobs"].items() if k not in config}
            space = replace(space_from_config(config, knobs, plan.bounds), holds_all=plan.space.holds_all)
            one = Round(number, space, tuple(said["believed"]), frozenset(said["dropped"]))
        found.append(one)
    return found
