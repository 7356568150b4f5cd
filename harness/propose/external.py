"""External proposer: a user's command that suggests settings and changes of the search space (docs/own-proposer.md).

Its answer is data: settings and changes pass the same checks as a user's configuration. Each rejected one becomes one line
with its reason. A command that fails, hangs or prints too much costs one line and at most its time limit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine import Knobs
from engine.errors import FigureError, HeadraceError, did_you_mean
from engine.system.strict_json import from_json, to_json
from harness import ConfigError
from harness.machine.json_command import CommandError, one_line, run_command, split_command
from harness.results.metrics import Direction
from harness.space.changes import Change, Legal, changed
from harness.space.space import Space, canonical

MOST_BYTES = 1_000_000  # of an answer
MOST_SETTINGS = 32  # and changes, of one answer
KEYS = ("settings", "changes", "note")


@dataclass(frozen=True)
class Answer:
    """The accepted part of an answer, and a line for each rejected part.

    settings: knob values, which fit the space after the changes.
    """

    settings: tuple[dict[str, Any], ...] = ()
    changes: tuple[Change, ...] = ()
    note: str = ""
    refused: tuple[str, ...] = ()


def study_state(
    study: str,
    objectives: Mapping[str, Direction],
    constraints: Sequence[str],
    space: Space,
    legal: Legal,
    rows: Sequence[Mapping[str, Any]],
    front: Sequence[int],
    budget: Mapping[str, Any],
) -> dict[str, Any]:
    """The study so far, as the command reads it.

    front: trial numbers. budget: what is left, e.g. {"trials": 40, "hours": 3.5}. Each row has trial, run, origin, status,
    knobs (those with an effect) and metrics (the objectives; null if not measured).
    """
    return {
        "study": study,
        "objectives": dict(objectives),
        "constraints": list(constraints),
        "space": space.as_config(),
        "legal": {name: list(limits) for name, limits in legal.items()},
        "knobs": {f.name: {"default": f.default, "text": f.metadata["text"]} for f in dataclasses.fields(Knobs)},
        "rows": [_row(row, objectives, space) for row in rows],
        "front": list(front),
        "budget": dict(budget),
    }


def _row(row: Mapping[str, Any], objectives: Mapping[str, Direction], space: Space) -> dict[str, Any]:
    facts = {name: row[name] for name in ("trial", "run", "origin", "status", "status_reason", "feasible", "suspect")}
    metrics = {name: value if (value := row[name]) is not None and math.isfinite(value) else None for name in objectives}
    return {**facts, "knobs": space.from_row(row), "metrics": metrics}


def ask_external(
    command: str,
    state: Mapping[str, Any],
    timeout_s: float,
    space: Space,
    legal: Legal,
    interrupted: Callable[[], bool] = lambda: False,
) -> Answer:
    """Run `command` on `state` and check its answer. Never raises: each error is a line of `refused`."""
    try:
        words = split_command("proposer.command", command)
        text = run_command(words, state, most_bytes=MOST_BYTES, timeout_s=timeout_s, interrupted=interrupted)
    except ConfigError as e:
        return Answer(refused=(str(e),))
    except (CommandError, FigureError) as e:
        return Answer(refused=(f"proposer: {e}",))
    try:
        answer = from_json(text)
    except (ValueError, RecursionError) as e:
        return Answer(refused=(f"proposer: the answer is not JSON ({one_line(e)}): {one_line(text)[:80]}",))
    return checked_answer(answer, space, legal)


def checked_answer(answer: Any, space: Space, legal: Legal) -> Answer:
    """The parts of a parsed answer that pass the checks of a user's settings and of `changed`."""
    if not isinstance(answer, dict):
        kind = type(answer).__name__
        return Answer(refused=(f"proposer: the answer is a {kind}; give an object with settings or changes",))
    unknown = [key for key in answer if key not in KEYS]
    refused = [f"proposer: {one_line(key)} is not a key of an answer; {did_you_mean(key, list(KEYS))}" for key in unknown]
    given = {}
    for key in ("settings", "changes"):
        given[key] = answer.get(key) or []
        if not isinstance(given[key], list) or any(not isinstance(item, dict) for item in given[key]):
            refused.append(f"proposer: {key} is not a list of objects")
            given[key] = []
        if len(given[key]) > MOST_SETTINGS:
            refused.append(f"proposer: {len(given[key])} {key} are above the limit; the first {MOST_SETTINGS} are used")
            given[key] = given[key][:MOST_SETTINGS]
    changes: list[Change] = []
    for raw in given["changes"]:
        evidence = f"external proposer: {one_line(raw.get('evidence') or 'no reason given')}"
        try:
            space, change = changed(space, {**raw, "evidence": evidence}, legal)
        except (HeadraceError, TypeError, ValueError) as e:
            refused.append(f"proposer: change {one_line(to_json(raw))} is rejected: {one_line(e)}")
        else:
            changes.append(change)
    settings: dict[str, dict[str, Any]] = {}
    for raw in given["settings"]:
        try:
            values = checked_setting(raw, space)
        except (HeadraceError, TypeError, ValueError) as e:
            refused.append(f"proposer: setting {one_line(to_json(raw))} is rejected: {one_line(e)}")
        else:
            settings[canonical(values)] = values
    return Answer(tuple(settings.values()), tuple(changes), one_line(answer.get("note") or ""), tuple(refused))


def checked_setting(raw: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """The knob values of a proposed setting. Raises `ConfigError` or `KnobError`.

    A fixed knob may appear with its own value. A missing knob gets its default, or the value of its range nearest to it.
    """
    entries = {entry.name: entry for entry in space.entries}
    moving = {}
    for name, value in raw.items():
        entry = entries.get(name)
        if name in space.fixed:
            if value != space.fixed[name]:
                raise ConfigError(f"{name}={one_line(value)} is fixed at {space.fixed[name]} in this study; leave it out")
            continue
        if isinstance(value, list | dict) or (entry and isinstance(value, bool) and not isinstance(entry.ends()[0], bool)):
            raise ConfigError(f"{name}={one_line(value)} is not a value of a knob; give a number or a word")
        if entry and entry.type == "int" and isinstance(value, float) and not value.is_integer():
            raise ConfigError(f"{name}={value:g} is not a whole number; give one")
        moving[name] = value
    values = space.values(space.params(moving))
    Knobs.from_mapping(values)
    return values
