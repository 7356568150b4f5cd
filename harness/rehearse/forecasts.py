"""Forecasts of a rehearsal: what the arithmetic says of each setting before it runs, as a study's forecast does.

The arithmetic is a replay of the rehearsal's own passes. The first setting's forecast is by a probe of this machine, each
later one also by the settings that have run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.bench.decoding.rehearse import recording
from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import first_line
from engine.knobs import Knobs
from harness.forecast.study.features import Arithmetic
from harness.forecast.study.fit import Features, Prior, Speed, fit, prior
from harness.forecast.study.probe import probe
from harness.forecast.study.routing import Routing, kept_profile


class Forecasts:
    """Forecasts for the settings `made` of a rehearsal that runs with `options`. A rehearsal does not fail for them: `tell`
    receives one line why there is none."""

    def __init__(
        self, source: Checkpoint, made: Sequence[Knobs], options: Mapping[str, Any], tell: Callable[[str], None]
    ) -> None:
        self._tell = tell
        self._known: tuple[Arithmetic, Prior] | None = None
        self._features: list[Features] = []
        self._ms: list[float] = []
        try:
            limits = {knobs.ssd_gbps for knobs in made}
            figures = probe(source.path, source.path, limits.pop() if len(limits) == 1 else None, lambda: False, tell)
            own = Routing(
                source, 1.0, (recording(source, options),), "the rehearsal's routing", kept_profile(source),
                options["tokens"] * options["rounds"],
            )  # fmt: skip
            self._known = Arithmetic(own, figures.disk_gbps), prior(figures, len(source.layers))
        except Exception as e:
            tell(f"no forecast: {first_line(e)}")

    def before(self, knobs: Knobs) -> Speed | None:
        """The forecast of a setting that has not run."""
        if self._known is None:
            return None
        arithmetic, first = self._known
        try:
            return fit(self._features, self._ms, first).speed(arithmetic.features(knobs.as_dict()))
        except Exception as e:
            self._tell(f"no forecast: {first_line(e)}")
            return None

    def after(self, knobs: Knobs, tok_s: float) -> None:
        """Learn the speed of a setting that had a forecast."""
        if self._known is not None:
            self._features.append(self._known[0].features(knobs.as_dict()))
            self._ms.append(1000 / tok_s)
