"""Ask a command outside for settings and changes of the space: JSON on its input, JSON on its output.

    proposer.command="python experiments/proposer_example.py"

It gets {study, objectives, constraints, space, knobs, legal, rows, front, budget} and answers
{"settings": [{knob: value}], "changes": [{"kind": "widen|narrow|fix|drop", "knob": ..., ...}], "note": "..."}, each of
them optional. What it says is data: it passes the checks of a user's configuration, and what does not is refused with
its reason, in one line. A command that fails, hangs or talks too much costs one line and its time limit, never the night.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import Knobs
from engine.errors import HeadraceError, did_you_mean
from harness import ConfigError
from harness.machine.json_command import CommandError, one_line, run_command, split_command
from harness.results.metrics import Direction
from harness.space.changes import Change, Legal, changed
from harness.space.space import Space, canonical

MOST_BYTES = 1_000_000  # of an answer
MOST_SETTINGS = 32
KEYS = ("settings", "changes", "note")


@dataclass(frozen=True)
class Answer:
    """What may be used of an answer: settings (knob values), changes of the space, its note, and what was refused and why.

    The settings fit the space as it is after the changes.
    """

    settings: tuple[dict[str, Any], ...] = ()
    changes: tuple[Change, ...] = ()
    note: str = ""
    refused: tuple[str, ...] = ()


def state(
    study: str,
    objectives: Mapping[str, Direction],
    constraints: Sequence[str],
    space: Space,
    legal: Legal,
    rows: Sequence[Mapping[str, Any]],
    front: Sequence[int],
    budget: Mapping[str, Any],
) -> dict[str, Any]:
    """The study so far, JSON-ready. front: trial numbers; budget: what is left, e.g. {"trials": 40, "hours": 3.5}.

    A row has trial, run, origin, status, knobs (those with an effect in it) and metrics (the objectives; null if none).
    """
    return {
        "study": study,
        "objectives": dict(objectives),
        "constraints": list(constraints),
        "space": space.as_config(),
        "legal": {name: list(limits) for name, limits in legal.items()},
        "knobs": {f.name: {"default": f.default, "text": f.metadata["text"]} for f in dataclasses.fields(Knobs)},
        "rows": [_told(row, objectives, space) for row in rows],
        "front": list(front),
        "budget": dict(budget),
    }


def _told(row: Mapping[str, Any], objectives: Mapping[str, Direction], space: Space) -> dict[str, Any]:
    told = {name: row[name] for name in ("trial", "run", "origin", "status", "status_reason", "feasible", "suspect")}
    metrics = {name: value if (value := row[name]) is not None and math.isfinite(value) else None for name in objectives}
    return {**told, "knobs": space.from_row(row), "metrics": metrics}


def ask_outside(
    command: str,
    state: Mapping[str, Any],
    timeout_s: float,
    space: Space,
    legal: Legal,
    interrupted: Callable[[], bool] = lambda: False,
) -> Answer:
    """Run `command` (split as a shell would, run without one) on `state`; whatever goes wrong is a line in `refused`."""
    try:
        words = split_command("proposer.command", command)
        text = run_command(words, state, most_bytes=MOST_BYTES, timeout_s=timeout_s, interrupted=interrupted)
    except ConfigError as e:
        return Answer(refused=(str(e),))
    except CommandError as e:
        return Answer(refused=(f"proposer: {e}",))
    try:
        answer = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as e:
        return Answer(refused=(f"proposer: its answer is not JSON ({one_line(e)}): {one_line(text)[:80]}",))
    return checked_answer(answer, space, legal)


def checked_answer(answer: Any, space: Space, legal: Legal) -> Answer:
    """What of a parsed answer passes the checks of a user's settings and of `changed`."""
    if not isinstance(answer, dict):
        kind = type(answer).__name__
        return Answer(refused=(f"proposer: its answer is a {kind}; give an object with settings or changes",))
    unknown = [key for key in answer if key not in KEYS]
    refused = [f"proposer: {one_line(key)} is not a key of an answer; {did_you_mean(key, list(KEYS))}" for key in unknown]
    wanted = {}
    for key in ("settings", "changes"):
        wanted[key] = answer.get(key) or []
        if not isinstance(wanted[key], list) or any(not isinstance(item, dict) for item in wanted[key]):
            refused.append(f"proposer: {key} is not a list of objects")
            wanted[key] = []
        if len(wanted[key]) > MOST_SETTINGS:
            refused.append(f"proposer: {len(wanted[key])} {key} are more than {MOST_SETTINGS}; the first are taken")
            wanted[key] = wanted[key][:MOST_SETTINGS]
    changes: list[Change] = []
    for raw in wanted["changes"]:
        evidence = f"proposed from outside: {one_line(raw.get('evidence') or 'no reason given')}"
        try:
            space, change = changed(space, {**raw, "evidence": evidence}, legal)
        except (HeadraceError, TypeError, ValueError) as e:
            refused.append(f"proposer: change {one_line(json.dumps(raw))} is refused: {one_line(e)}")
        else:
            changes.append(change)
    settings: dict[str, dict[str, Any]] = {}
    for raw in wanted["settings"]:
        try:
            values = checked_setting(raw, space)
        except (HeadraceError, TypeError, ValueError) as e:
            refused.append(f"proposer: setting {one_line(json.dumps(raw))} is refused: {one_line(e)}")
        else:
            settings[canonical(values)] = values
    return Answer(tuple(settings.values()), tuple(changes), one_line(answer.get("note") or ""), tuple(refused))


def checked_setting(raw: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The knob values of a proposed setting. A knob that is held may be named with the value it has; one not named is at its
    default, or the nearest to it. Raises `ConfigError` or `KnobError`."""
    entries = {e.name: e for e in space.entries}
    moving = {}
    for name, value in raw.items():
        entry = entries.get(name)
        if name in space.fixed:
            if value != space.fixed[name]:
                raise ConfigError(f"{name}={one_line(value)} is held at {space.fixed[name]} in this study; leave it out")
            continue
        if isinstance(value, list | dict) or (entry and isinstance(value, bool) and not isinstance(entry.ends()[0], bool)):
            raise ConfigError(f"{name}={one_line(value)} is not a value of a knob; give a number or a word")
        if entry and entry.type == "int" and isinstance(value, float) and not value.is_integer():
            raise ConfigError(f"{name}={value:g} is not a whole number; give one")
        moving[name] = value
    values = space.values(space.params(moving))
    Knobs.from_mapping(values)
    return values


def _refuse_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")
