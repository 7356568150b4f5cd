"""Text: what a study prints of its forecast before its first run."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import HeadraceError, first_line
from engine.knobs import Knobs
from harness.decisions.reuse import settings_of
from harness.show.text import RESIDENT, number, setting
from harness.space.space import Space
from harness.study.engines import is_own
from harness.study.study import Study

from .candidates import Candidate, sample, winners

if TYPE_CHECKING:
    from .forecaster import Forecaster

Row = Mapping[str, Any]


class Runner(Protocol):
    """What is needed of `harness.run.runner.Runner`."""

    @property
    def interrupted(self) -> Callable[[], bool]: ...

    def prepare(self) -> None: ...


def started(
    study: Study, space: Space, rows: Sequence[Row], note: Callable[[str], None], runner: Runner
) -> Callable[[Row, Sequence[Row], datetime], Mapping[str, float]]:
    """Note the forecast of a session before its first run, or in one line why there is none.

    `rows`: the runs so far on this machine. `runner` prepares its first run when the probe has ended. Returns what gives the
    columns of a row: `Forecaster.columns`, or no columns.
    """
    try:
        if why := why_none(study):
            raise HeadraceError(why)
        from .forecaster import forecaster  # it imports mlx-lm, which a study of another engine does not need

        found, problem = forecaster(study, runner.interrupted, note)
        runner.prepare()
        if problem and not found.runs(rows):
            note(f"no forecast before the first run: {problem.splitlines()[0]}")
            return found.columns
        for text in start_lines(study, space, rows, found):
            note(text)
    except Exception as e:  # a search goes on without a forecast, whatever the model's files hold
        note(f"no forecast: {first_line(e)}")
        return lambda values, rows, when: {}
    return found.columns


def why_none(study: Study) -> str:
    """Why a study has no forecast, without a look at its model; empty if it may have one."""
    engine = study.config["engine"]
    if is_own(engine):
        return ""
    return f"only this project's engine can be replayed, not {engine['command'] or engine['module']}"


def start_lines(study: Study, space: Space, rows: Sequence[Row], found: Forecaster) -> list[str]:
    """The forecast of the reference and of the settings of `space` that win by arithmetic, after the runs `rows`."""
    begin = time.monotonic()
    lines = []
    if study.reference_gb <= study.limit_gb:
        lines.append(line("reference", RESIDENT, Candidate({}, found.speed({}, rows), study.reference_gb)))
    known = [settings_of(row) for row in rows if row["origin"] != "reference"]
    first = [*known, *(study.space.values(params) for params in study.anchors)]
    some = sample(space, first, study.seed, study.forbidden, lambda values: found.speed(values, rows))
    found.keep()
    names = [entry.name for entry in space.entries]
    lines += [line(name, _knobs(one.values, names), one) for name, one in winners(some)]
    runs = len(found.runs(rows))
    basis = f"fitted to {runs} run{'' if runs == 1 else 's'}" if runs else "before any run"
    took = time.monotonic() - begin
    settings = f"{len(some)} setting{'' if len(some) == 1 else 's'} in {took:.1f} s"
    return [f"forecast {basis}, with 80 % intervals: {settings}; routing: {found.arithmetic.routing.about}", *lines]


def line(name: str, knobs: str, one: Candidate) -> str:
    """One setting: speed with its interval, memory, and whether it is lossy."""
    speed = one.speed
    quality = ", quality unknown" if one.lossy else ""
    return (
        f"forecast, {name}: {number(speed.tok_s)} tok/s ({number(speed.low)} to {number(speed.high)}), "
        f"{number(one.memory_gb)} GB{quality}: {knobs}"
    )


def _knobs(values: Mapping[str, Any], names: Sequence[str]) -> str:
    return setting(Knobs.from_mapping(values).as_dict(), names)
