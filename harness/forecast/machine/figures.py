"""Figures: the rates of this machine, by probes, or of a profile, by its published figures and fitted efficiencies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import HeadraceError, did_you_mean
from harness import ConfigError
from harness.forecast.speed import Rates, Work
from harness.forecast.target import Target
from harness.forecast.world.calibration import fitted
from harness.machine.device import AUTO, FIGURES, Device, profile

from .disk import disk_speed
from .layer import LayerTime, layer_time
from .miss import MissTime, miss_time

# Standard deviations of a forecast's logarithm on a measured machine, besides what its probes vary (docs/forecast.md).
MODEL_SD = 0.05  # of the model of time, while the machine is as it was at the probe
STATE_SD = 0.18  # of the machine's speed from one time to another, which a probe of some seconds cannot see
HERE_SD = math.hypot(MODEL_SD, STATE_SD)
SET = "device."


@dataclass(frozen=True)
class Machine:
    """A machine and a function that gives its rates for some work. `lines` say where each figure comes from. `probed` is the
    time of a layer and `missing` that of a miss where they were measured; a prompt's arithmetic is known only then."""

    device: Device
    backend: str
    rates: Callable[[Work], Rates] = field(repr=False)
    disk_gbps: float
    lines: tuple[str, ...]
    probed: LayerTime | None = None
    missing: MissTime | None = None

    @property
    def widened(self) -> bool:
        """Whether MLX widens 16-bit floats there."""
        return self.backend == "cpu"


def device_from(words: Mapping[str, str]) -> Device:
    """The device that `device=NAME` names, with the figures that `device.FIGURE=VALUE` replaces. Raises `ConfigError`."""
    found = profile(words.get("device", AUTO))
    changed: dict[str, Any] = {}
    for word, value in words.items():
        if not word.startswith(SET):
            continue
        name = word[len(SET) :]
        if name not in FIGURES:
            raise ConfigError(f"{word}={value} is unknown; {did_you_mean(name, [*FIGURES])}")
        changed[name] = _number(word, value) if name not in ("name", "chip", "backend", "source") else value
    return dataclasses.replace(found, **changed)


def machine(device: Device, model: Target, folder: Path) -> Machine:
    """The machine: measured if it is this one. `folder`: on the disk to measure, if the model has no files here.

    Raises `ConfigError` for a profile that lacks a figure, and `HeadraceError` for a probe that fails.
    """
    return _measured(device, model, folder) if device.name == AUTO else _published(device)


def _published(device: Device) -> Machine:
    memory, disk = float(device.need("memory_bandwidth_gbps")), float(device.need("disk_gbps"))
    device.need("memory_gb")
    fit = fitted()
    lines = (
        f"memory {memory:g} GB/s and disk {disk:g} GB/s as published ({device.source})",
        f"of which engines reach {fit.memory_efficiency:.0%} and {fit.disk_efficiency:.0%}, and a layer takes another "
        f"{fit.layer_ms:.2g} ms: fitted to {fit.measurements} published measurements of {len(fit.engines)} engines",
    )
    return Machine(device, str(device.backend or "metal"), lambda work: fit.rates(memory, disk, work), disk, lines)


def _measured(device: Device, model: Target, folder: Path) -> Machine:
    if model.checkpoint is None:
        raise HeadraceError(
            f"{model.name}: mlx-lm has no such architecture, so that no layer of it can be measured here; name a profile: "
            "device=NAME"
        )
    layer, miss = layer_time(model.shape, model.base_bits), miss_time(model.shape, model.base_bits)
    if device.disk_gbps is None:
        found = disk_speed(model.files, model.widths[0].expert_bytes, folder)
        disk, disk_sd, how = found.gbps, found.sd, found.how
    else:
        disk, disk_sd, how = device.disk_gbps, 0.0, "as set"
    lines = (
        f"disk {disk:.3g} GB/s ({how})",
        f"a layer {layer.layer_ms:.3g} ms, the head {layer.rest_ms:.3g} ms (mlx-lm's modules in the real shape, zeros)",
        f"a layer that may miss an expert {miss.sync_ms:.3g} ms, one that does {miss.missed_ms:.3g} ms besides its bytes "
        "(the engine in the real shape, zeros)",
    )
    rates = Rates(
        float("inf"), disk, layer_ms=layer.layer_ms, sync_ms=miss.sync_ms, missed_ms=miss.missed_ms, rest_ms=layer.rest_ms,
        compute_sd=layer.sd, disk_sd=disk_sd, inadequacy_sd=HERE_SD,
    )  # fmt: skip

    def for_work(work: Work) -> Rates:
        parts = rates.middle(work)
        total = sum(parts.values())
        return dataclasses.replace(
            rates, compute_sd=layer.sd * parts["compute"] / total, disk_sd=disk_sd * parts["disk"] / total
        )

    return Machine(device, str(device.backend), for_work, disk, lines, layer, miss)


def _number(word: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 < number < float("inf"):
        raise ConfigError(f"{word}={value} is no positive number; give one, such as {word}=5.3")
    return number
