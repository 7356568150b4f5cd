"""Calibration: the efficiencies that published measurements support, and how well they hold for an engine not among them.

Three figures are fitted to the logarithms of the published times: the share of the memory's bandwidth, the time of a layer
besides its weights, and the share of the disk's bandwidth. Each engine counts once, however many measurements it has, since
engines differ much more than settings of one. Hit rates are the published ones where there are some. A check of an engine
uses the fit to all other engines (`without`), as for a user whose engine is not among them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.system.strict_json import from_json
from harness.forecast.interval import Interval, interval, spread, widened
from harness.forecast.speed import Rates, Work

from .measurements import world
from .setting import Published, lacks, published

FITTED = ("memory efficiency", "layer_ms", "disk efficiency")
PRIOR = (math.log(0.6), math.log(0.5), math.log(0.6))  # of the logarithms, before any measurement is seen
PRIOR_SD = (0.7, 1.0, 0.7)
STEPS = 40
FILE = Path(__file__).with_name("fitted.json")  # written by `python -m harness.forecast.world.page --fit`


@dataclass(frozen=True)
class Calibration:
    """The fit. `covariance` is that of the logarithms of `FITTED`; `sd` is that of an engine's logarithm around the fit, by
    `degrees` of freedom."""

    memory_efficiency: float
    layer_ms: float
    disk_efficiency: float
    covariance: tuple[tuple[float, ...], ...]
    sd: float
    degrees: int
    engines: tuple[str, ...]
    measurements: int

    def rates(self, memory_gbps: float, disk_gbps: float, work: Work) -> Rates:
        """The figures of a machine with these published bandwidths, with their uncertainty for `work`."""
        rates = Rates(memory_gbps * self.memory_efficiency, disk_gbps * self.disk_efficiency, self.layer_ms)
        return self.uncertain(rates, work)

    def uncertain(self, rates: Rates, work: Work) -> Rates:
        """The rates with the uncertainty of a token's time: of memory and layers, of the disk, and of an unknown engine."""
        parts = rates.middle(work)
        total = sum(parts.values())
        by_layer = work.all_layers * rates.layer_ms
        gradient = np.array([-(parts["compute"] - by_layer), by_layer, -parts["disk"]]) / total
        covariance = np.array(self.covariance)
        compute, disk = (
            math.sqrt(max(0.0, float(g @ covariance @ g))) for g in (gradient * (1, 1, 0), gradient * (0, 0, 1))
        )
        return dataclasses.replace(
            rates, compute_sd=widened(compute, self.degrees), disk_sd=widened(disk, self.degrees),
            inadequacy_sd=widened(self.sd, self.degrees),
        )  # fmt: skip


def fit(some: Sequence[Published]) -> Calibration:
    """The most likely figures, by Gauss-Newton steps with halving, from the prior on."""
    counts = Counter(one.measured.engine for one in some)
    weights = np.array([1 / counts[one.measured.engine] for one in some])
    sure = np.diag(1 / np.array(PRIOR_SD) ** 2)
    x, sd, degrees = np.array(PRIOR), 0.5, max(1, len(counts) - len(FITTED))
    covariance = np.linalg.inv(sure)
    for _ in range(STEPS):
        residuals, jacobian = _residuals(some, x)
        sd = math.sqrt(float((weights * residuals**2).sum()) / degrees)
        hessian = (jacobian.T * weights) @ jacobian / sd**2 + sure
        covariance = np.linalg.inv(hessian)
        step = covariance @ ((jacobian.T * weights) @ residuals / sd**2 + sure @ (np.array(PRIOR) - x))
        x = x + 0.5 * step
    values = np.exp(x)
    return Calibration(
        float(values[0]), float(values[1]), float(values[2]), tuple(tuple(row) for row in covariance.tolist()), sd, degrees,
        tuple(sorted(counts)), len(some),
    )  # fmt: skip


def _residuals(some: Sequence[Published], x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logarithms of measured over computed times, and the derivatives of the computed logarithms."""
    memory, layer, disk = np.exp(x)
    residuals, rows = [], []
    for one in some:
        missed = _missed_gb(one)
        parts = np.array([
            one.work.weights_gb / (one.memory_gbps * memory) * 1000, one.work.all_layers * layer,
            missed / (one.disk_gbps * disk) * 1000,
        ])  # fmt: skip
        residuals.append(math.log(one.ms / parts.sum()))
        rows.append(parts * (-1, 1, -1) / parts.sum())
    return np.array(residuals), np.array(rows)


def _missed_gb(one: Published) -> float:
    """GB that a token misses: by the published hit rate, otherwise the mean of the possible routings."""
    mean = float(np.mean(one.work.missed_gb))
    rate = one.measured.hit_rate
    share = 1 - float(np.mean(one.hit_rates))
    return mean if rate is None or share <= 0 else mean * (1 - rate) / share


@functools.cache
def usable() -> tuple[Published, ...]:
    """All measurements of which enough is published."""
    return tuple(published(one) for one in world() if not lacks(one))


@functools.cache
def fitted() -> Calibration:
    """The stored fit to all measurements. Making it opens every shape, which takes seconds; a test compares it."""
    content = from_json(FILE.read_text(encoding="utf-8"))
    rows = tuple(tuple(row) for row in content.pop("covariance"))
    return Calibration(**{**content, "covariance": rows, "engines": tuple(content["engines"])})


@functools.cache
def without(engine: str | None = None) -> Calibration:
    """The fit to the measurements of all engines but one; None: of all."""
    return fit([one for one in usable() if one.measured.engine != engine])


def forecast_of(one: Published) -> Interval:
    """Tokens a second of a published measurement, by the fit to all other engines and without its own hit rate."""
    rates = without(one.measured.engine).rates(one.memory_gbps, one.disk_gbps, one.work)
    times = rates.by_world(one.work)
    sds = {"locality": spread(times), "disk": rates.disk_sd, "compute": rates.compute_sd, "inadequacy": rates.inadequacy_sd}
    return interval(1000 / math.exp(float(np.mean(np.log(times)))), sds)
