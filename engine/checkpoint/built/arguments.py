"""Arguments: finds the argument of mlx-lm that gives a number of the built model, and changes it.

An argument's name differs by architecture, it may be nested, and config.json may leave it to mlx-lm's default. Every
argument with the right value is a candidate. It is the right one if the model built with another value of it has that value
and is the same otherwise.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError

from .model import BuiltModel, built_model

LIKELY = re.compile(r"(?i)top_?k|_k$|per_tok|expert")  # tried first; the others are tried as well
Place = tuple[str, ...]


def with_top_k(path: Path, config: dict[str, Any], count: int) -> dict[str, Any] | None:
    """The configuration with which mlx-lm chooses at most `count` experts for a token in each layer. None if no argument
    does that without changing anything else."""
    built = built_model(path, config)
    wanted = [min(switch.top_k, count) for switch in built.switches]
    for place, value in _candidates(config, built):
        fewer = [min(n, count) for n in value] if isinstance(value, list) else count
        changed = _changed(config, place, fewer)
        try:
            found = built_model(path, changed)
        except CheckpointError:
            continue  # this argument is another one, such as a number of heads
        if [switch.top_k for switch in found.switches] == wanted and found.parameters == built.parameters:
            return changed
    return None


def named(config: Mapping[str, Any], value: int, words: str) -> str:
    """The entries of config.json that have the value, as `key=value`, those whose name matches `words` if there are such; at
    most three. Without any, the value as mlx-lm's own."""
    keys = sorted({key for table in _tables(config).values() for key, found in table.items() if _is(found, value)})
    likely = [key for key in keys if re.search(words, key)] or keys
    return f"config.json has {', '.join(f'{key}={value}' for key in likely[:3])}" if likely else f"mlx-lm takes {value}"


def _candidates(config: Mapping[str, Any], built: BuiltModel) -> Iterator[tuple[Place, Any]]:
    """Place and value of every argument that has the number of experts for a token: those in config.json, and those that
    mlx-lm adds, at every place where it may look for them."""
    tables = _tables(config)
    found = [((*place, key), value) for place, table in tables.items() for key, value in table.items()]
    added = built.arguments.items()
    found += [((*place, key), value) for key, value in added for place in tables if tables[place].get(key) is None]
    right = [(place, value) for place, value in found if _is(value, built.top_k)]
    yield from sorted(right, key=lambda of: not LIKELY.search(of[0][-1]))


def _is(value: Any, number: int) -> bool:
    numbers = value if isinstance(value, list) and value else [value]
    return all(type(n) is int for n in numbers) and max(numbers) == number


def _tables(config: Mapping[str, Any], place: Place = ()) -> dict[Place, Mapping[str, Any]]:
    """The configuration and the tables in it, by place; quantization's entries concern no argument."""
    found = {place: config}
    for key, value in config.items():
        if isinstance(value, dict) and not key.startswith("quantization"):
            found |= _tables(value, (*place, key))
    return found


def _changed(config: Mapping[str, Any], place: Place, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(dict(config))
    table = changed
    for key in place[:-1]:
        table = table[key]
    table[place[-1]] = value
    return changed
