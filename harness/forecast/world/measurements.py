"""World: the published measurements of engines that stream experts, read from world.yaml beside this file."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import yaml

from engine.errors import HeadraceError

from .checks import measured
from .published import Measured

FILE = Path(__file__).with_name("world.yaml")


def read_measurements(file: Path) -> tuple[Measured, ...]:
    """The measurements in a file. Raises `HeadraceError` for a file or an entry that is wrong."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise HeadraceError(f"{file} cannot be read ({e}); correct it") from e
    if not isinstance(content, list):
        raise HeadraceError(f"{file} is no list of measurements; write one entry for each")
    found = tuple(measured(entry, f"{file.name}, entry {number}") for number, entry in enumerate(content, start=1))
    for name, count in Counter(one.name for one in found).items():
        if count > 1:
            raise HeadraceError(f"{file.name} has {count} entries with the name {name}; give each a name of its own")
    return found


@functools.cache
def world() -> tuple[Measured, ...]:
    """The measurements that Headrace ships."""
    return read_measurements(FILE)
