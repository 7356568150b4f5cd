"""Speed: milliseconds a token from few figures of a machine.

    compute = GB that a token touches / (memory bandwidth * efficiency) + layers * layer_ms + rest_ms
    disk    = GB that it misses / (disk bandwidth * disk efficiency)
    sync    = layers that may miss an expert * sync_ms
    misses  = layers that miss an expert * missed_ms

With a window of one token nothing overlaps: a layer's experts are known only when its router has chosen. `missed_ms` is
what a miss costs besides its bytes: the eviction, threads that begin and end a read, and the arrival in a slot. A machine
that was measured here has the time of a whole layer, and no memory bandwidth. A profile has published bandwidths, and the
efficiencies that `harness.forecast.world.calibration` fits to published measurements. Their `missed_ms` is 0,
for these measurements say nothing of it (docs/forecast.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PARTS = ("compute", "disk", "sync", "misses")


@dataclass(frozen=True)
class Work:
    """What one token asks of a machine. `missed_gb` and `missed_layers`, the layers that miss an expert, have an entry for
    each possible routing. `layers` are those with routed experts that are not all in memory, for which the host waits, and
    `all_layers` those that compute."""

    weights_gb: float  # resident weights but the embedding, experts, keys and values
    missed_gb: tuple[float, ...]
    missed_layers: tuple[float, ...]
    layers: int
    all_layers: int


@dataclass(frozen=True)
class Rates:
    """The figures of a machine that turn work into time. The standard deviations are those of the
    logarithm of a token's time."""

    gbps: float  # of memory, times its efficiency
    disk_gbps: float  # times its efficiency
    layer_ms: float = 0.0
    sync_ms: float = 0.0
    missed_ms: float = 0.0
    compute_sd: float = 0.0
    disk_sd: float = 0.0
    inadequacy_sd: float = 0.0
    rest_ms: float = 0.0  # of what is no layer, where layers were measured

    def parts_ms(self, work: Work, missed_gb: float, missed_layers: float) -> dict[str, float]:
        """Milliseconds of a token by what they are spent on."""
        return {
            "compute": work.weights_gb / self.gbps * 1000 + work.all_layers * self.layer_ms + self.rest_ms,
            "disk": missed_gb / self.disk_gbps * 1000,
            "sync": work.layers * self.sync_ms,
            "misses": missed_layers * self.missed_ms,
        }

    def by_world(self, work: Work) -> list[float]:
        """Milliseconds of a token for each possible routing."""
        worlds = zip(work.missed_gb, work.missed_layers, strict=True)
        return [sum(self.parts_ms(work, gb, layers).values()) for gb, layers in worlds]

    def middle(self, work: Work) -> dict[str, float]:
        """The parts for the geometric mean over routings, which is what the interval lies around."""
        total = math.exp(float(np.mean(np.log(self.by_world(work)))))
        fixed = self.parts_ms(work, 0.0, float(np.mean(work.missed_layers)))
        return fixed | {"disk": max(0.0, total - sum(fixed.values()))}
