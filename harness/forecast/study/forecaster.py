"""Forecaster: the speed of a study's settings, from this machine's figures before any run, then from the study's own rows.

Before each run the model of time is fitted anew to all runs that have ended, so that a row's forecast uses only what was
known then. A forecast serves readers: no decision of the search follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.known import opened
from engine.errors import HeadraceError
from harness.decisions.reuse import settings_of
from harness.study.study import Study

from .control import Controls, controls
from .features import Arithmetic
from .fit import Features, Figures, Fit, Prior, Speed, fit, prior
from .probe import Kept, kept, probe
from .routing import routing

Row = Mapping[str, Any]


BASE_SD, IO_SD = 0.5, 1.0  # relative, of a machine without a probe: its first run and an unknown disk stand for it
UNKNOWN_GBPS = 1.0  # of that disk
UNKNOWN_MISS = 0.3  # of the time of a layer: the sd of what a miss costs there


class Forecaster:
    """Forecasts for one study. `found` has this machine's figures and what was replayed before; without figures, forecasts
    begin after the first run, whose time stands for them."""

    def __init__(self, study: Study, checkpoint: Checkpoint, found: Kept) -> None:
        figures, limit = found.figures, study.space.fixed.get("ssd_gbps")
        disk = UNKNOWN_GBPS if figures is None else figures.disk_gbps
        self.arithmetic = Arithmetic(routing(checkpoint), limit or disk, found.known)
        self._folder, self._layers, self._kept = study.folder, len(checkpoint.layers), found
        self._fitted: tuple[int, Fit, Controls] | None = None
        self._written = len(found.known)

    def speed(self, values: Mapping[str, Any], rows: Sequence[Row], when: datetime | None = None) -> Speed:
        """The forecast of a setting at a time (default: now) after the runs `rows` of this machine. Raises `HeadraceError`
        for a setting that cannot be replayed, and if there are neither figures nor runs."""
        features = self.arithmetic.features(values)
        found, state = self._fit(rows)
        factor = state.at(when or datetime.now(UTC))
        return found.speed(features, factor.value, factor.sd)

    def columns(self, values: Mapping[str, Any], rows: Sequence[Row], when: datetime) -> dict[str, float]:
        """The columns of a row; empty for a setting without a forecast."""
        try:
            found = self.speed(values, rows, when)
        except Exception:  # a run is worth more than its forecast
            return {}
        self.keep()
        return {"forecast_tok_s": found.tok_s, "forecast_tok_s_low": found.low, "forecast_tok_s_high": found.high}

    def runs(self, rows: Sequence[Row]) -> list[tuple[Features, Row]]:
        """The runs that the model is fitted to, with their features."""
        found = []
        for row in rows:
            if row["status"] == "ok" and row["decode_tok_s"]:
                try:
                    found.append((self.arithmetic.features(settings_of(row)), row))
                except HeadraceError:
                    continue
        return found

    def keep(self) -> None:
        """Write the file beside the rows if a setting was replayed since."""
        if len(self._kept.known) > self._written:
            self._written = len(self._kept.known)
            self._kept.write(self._folder)

    def _fit(self, rows: Sequence[Row]) -> tuple[Fit, Controls]:
        if self._fitted is None or self._fitted[0] != len(rows):
            state, known = controls(rows), self.runs(rows)
            ms = [1000 / row["decode_tok_s"] * state.at(row["started_at"]).value for _, row in known]
            self._fitted = len(rows), fit([features for features, _ in known], ms, self._prior(ms)), state
        return self._fitted[1:]

    def _prior(self, ms: Sequence[float]) -> Prior:
        if (figures := self._kept.figures) is not None:
            return prior(figures, self._layers)
        if not ms:
            raise HeadraceError("neither figures of this machine nor a run")
        base_ms, unknown = ms[0], UNKNOWN_MISS * ms[0] / self._layers
        return prior(Figures(base_ms, BASE_SD, 0.0, 0.0, unknown, UNKNOWN_GBPS), self._layers, IO_SD)


def forecaster(study: Study, interrupted: Callable[[], bool], tell: Callable[[str], None]) -> tuple[Forecaster, str]:
    """The forecaster of a study, with the figures of an earlier session or of a probe of some seconds, and why the probe
    failed (empty if it did not). Raises `HeadraceError` for a model that cannot be opened."""
    checkpoint = opened(study.checkpoint, trust_code=study.config["model"]["trust_code"])
    if (found := kept(study.folder)) is not None:
        return Forecaster(study, checkpoint, found), ""
    found, problem = Kept(None), ""
    try:
        found.figures = probe(study.checkpoint, study.folder, study.space.fixed.get("ssd_gbps"), interrupted, tell)
        found.write(study.folder)
    except HeadraceError as e:
        problem = str(e)
    return Forecaster(study, checkpoint, found), problem
