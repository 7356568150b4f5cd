"""Forecast of a rehearsal: what the arithmetic says of its settings before they run, as a study's forecast does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import first_line
from engine.knobs import Knobs
from engine.routing.synthetic import Locality
from harness.forecast.study.features import Arithmetic
from harness.forecast.study.fit import Speed, fit, prior
from harness.forecast.study.probe import probe
from harness.forecast.study.routing import routing


def forecasts(
    source: Checkpoint, made: Sequence[Knobs], trace: Path | None, locality: Locality, tell: Callable[[str], None]
) -> list[Speed | None]:
    """The forecast of each setting, or none with one line why: a rehearsal does not fail for it."""
    try:
        limits = {knobs.ssd_gbps for knobs in made}
        figures = probe(source.path, source.path, limits.pop() if len(limits) == 1 else None, lambda: False, tell)
        arithmetic = Arithmetic(routing(source, trace, None if trace else locality), figures.disk_gbps)
        found = fit([], [], prior(figures, len(source.layers)))
        return [found.speed(arithmetic.features(knobs.as_dict())) for knobs in made]
    except Exception as e:
        tell(f"no forecast: {first_line(e)}")
        return [None] * len(made)
