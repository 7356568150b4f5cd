"""Checks: one thing that is tried once on this machine, and its result."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from engine.errors import first_line

WORKS, NO_VALUE, FAILS = "works", "no value", "fails"
LIMIT_S = 10.0


class Answer(NamedTuple):
    """What a check found: a text for people, and figures with units in their names."""

    text: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Place:
    """The folder on the disk that is measured. It belongs to one examination, which removes it."""

    folder: Path

    @property
    def file(self) -> Path:
        """The file of random bytes that the checks of the disk read."""
        return self.folder / "random.bin"


@dataclass(frozen=True)
class Check:
    """Something to try. `run` returns None where the machine has no such thing; `without` says what that means."""

    group: str
    name: str
    run: Callable[[Place], Answer | None] = field(repr=False)
    without: str = ""
    limit_s: float = LIMIT_S

    def result(self, place: Place) -> Result:
        """Try it once. An error becomes the reason of a failure."""
        begin = time.perf_counter()
        try:
            found = self.run(place)
        except Exception as e:  # an unknown machine may raise anything
            return self.failed(first_line(e), time.perf_counter() - begin)
        seconds = round(time.perf_counter() - begin, 4)
        if found is None:
            return Result(self.group, self.name, NO_VALUE, "", "", seconds, {})
        return Result(self.group, self.name, WORKS, found.text, "", seconds, found.figures)

    def failed(self, reason: str, seconds: float) -> Result:
        """The result of a failure."""
        return Result(self.group, self.name, FAILS, "", reason, round(seconds, 4), {})


@dataclass(frozen=True)
class Result:
    """The result of a check: works, no value or fails. `seconds` is the time that it took."""

    group: str
    name: str
    state: str
    text: str
    reason: str
    seconds: float
    figures: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
