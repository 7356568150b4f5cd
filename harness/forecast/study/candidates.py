"""Candidates: a sample of a study's legal settings with their forecasts, and those that win by arithmetic.

Quality is not known before a run, so the fastest setting is named with and without lossy knobs, and within less memory.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from engine.errors import HeadraceError
from engine.knobs import Knobs
from harness.space.space import Space, canonical

from .fit import Speed

MOST, LONGEST_S = 100, 4.0  # settings, and seconds of the sample
LEAST = 3  # settings that are computed however long they take
TIE = 0.02  # relative difference of speed that is none: less memory wins
SMALLER = (0.5, 0.25)  # shares of the fastest setting's memory


@dataclass(frozen=True)
class Candidate:
    """A setting with its forecast and its predicted peak."""

    values: Mapping[str, Any]
    speed: Speed
    memory_gb: float

    @property
    def lossy(self) -> bool:
        return bool(Knobs.from_mapping(self.values).lossy)


def sample(
    space: Space,
    first: Sequence[Mapping[str, Any]],
    seed: int,
    forbidden: Callable[[Mapping[str, Any]], tuple[str | None, float]],
    speed: Callable[[Mapping[str, Any]], Speed],
) -> list[Candidate]:
    """Candidates from the settings `first`, then from random ones, until `LONGEST_S` is spent or `MOST` are
    drawn. Settings that cannot run or be replayed are left out."""
    found: list[Candidate] = []
    seen: set[str] = set()
    end = time.monotonic() + LONGEST_S
    for number, values in enumerate(itertools.chain(first, drawn(space, seed))):
        if number >= LEAST and time.monotonic() > end:
            break
        if canonical(values) in seen:
            continue
        seen.add(canonical(values))
        try:
            reason, memory_gb = forbidden(values)
            if reason is None:
                found.append(Candidate(values, speed(values), memory_gb))
        except HeadraceError:
            continue
    return found


def drawn(space: Space, seed: int) -> Iterator[dict[str, Any]]:
    """Random settings of a space; at most `MOST`."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    finally:
        optuna.logging.set_verbosity(before)
    for _ in range(MOST):
        yield space.suggest(study.ask())


def winners(some: Sequence[Candidate]) -> list[tuple[str, Candidate]]:
    """The settings that win by arithmetic, each under its first name."""
    if not some:
        return []
    fastest = _fastest(some)
    exact = [one for one in some if not one.lossy]
    named = [("fastest without loss", _fastest(exact))] if exact else []
    named.append(("fastest", fastest))
    for share in SMALLER:
        small = [one for one in some if one.memory_gb <= share * fastest.memory_gb]
        named += [(f"fastest in {share:g} of its memory", _fastest(small))] if small else []
    least = min(some, key=lambda one: (one.memory_gb, -one.speed.tok_s))
    named.append(("least memory", least))
    found: list[tuple[str, Candidate]] = []
    for name, one in named:
        if all(one is not other for _, other in found):
            found.append((name, one))
    return found


def _fastest(some: Sequence[Candidate]) -> Candidate:
    most = max(one.speed.tok_s for one in some)
    return min((one for one in some if one.speed.tok_s >= most * (1 - TIE)), key=lambda one: one.memory_gb)
