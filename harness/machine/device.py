"""Device: the figures of a machine that decide what fits and what costs time: of this one, or of a profile.

A study runs on this machine, with the limits of `device`. Without a figure in the configuration the machine's own holds.
Profiles of other machines (`experiments/devices.yaml`) are for forecasts; a study that uses one elsewhere says so.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.errors import did_you_mean
from engine.knobs import GB
from harness import ConfigError
from harness.schema import profiles

from . import identity

AUTO = "auto"
CUDA_SHARE = 0.9  # of a GPU's memory; its driver and other programs need some. Metal's own figure leaves room for them
SAME_MEMORY = 0.1  # relative difference that GB against GiB can explain


@dataclass(frozen=True)
class Device:
    """Figures of a machine, as the keys of `device` in a study; None where a figure is not known. GB are 10^9 bytes."""

    name: str
    chip: str | None = None  # processor, or the GPU where it is one of its own
    backend: str | None = None  # cpu, metal or cuda
    cores: int | None = None
    gpu_cores: int | None = None
    memory_gb: float | None = None
    gpu_memory_gb: float | None = None  # that the GPU may use
    memory_bandwidth_gbps: float | None = None
    disk_gbps: float | None = None
    usable_share: float = 0.9
    source: str = ""

    def need(self, figure: str) -> Any:
        """A figure by name. Raises `ConfigError` if it is not known."""
        if (value := getattr(self, figure)) is None:
            raise ConfigError(f"device={self.name} has no {figure}: no source gives it; set device.{figure}=VALUE")
        return value

    @property
    def limit_gb(self) -> float:
        """The memory that a run may use, GB: a share of the memory, and no more than the GPU may use."""
        limit = float(self.need("memory_gb")) * self.usable_share
        return limit if self.gpu_memory_gb is None else min(limit, self.gpu_memory_gb)

    def is_here(self, here: Device) -> bool:
        """Whether no figure that names a machine contradicts those of this machine."""
        if self.memory_gb is not None and here.memory_gb and abs(self.memory_gb / here.memory_gb - 1) > SAME_MEMORY:
            return False
        facts = ((getattr(self, name), getattr(here, name)) for name in ("chip", "backend", "cores"))
        return all(None in pair or str(pair[0]).lower() == str(pair[1]).lower() for pair in facts)

    def __str__(self) -> str:
        """`Apple M2 Max: metal, 12 cores, 103 GB of memory, 77.3 for the GPU`."""
        parts = [
            self.backend or "",
            f"{self.cores} cores" if self.cores else "",
            f"{self.memory_gb:.3g} GB of memory" if self.memory_gb else "",
            f"{self.gpu_memory_gb:.3g} GB for the GPU" if self.gpu_memory_gb else "",
        ]
        return f"{self.chip or self.name}: {', '.join(filter(None, parts))}"


FIGURES = tuple(f.name for f in dataclasses.fields(Device))


def _given(config: Mapping[str, Any]) -> Device:
    return Device(**{name: config[name] for name in FIGURES if config.get(name) is not None})


@functools.cache
def this_machine(*, mlx: bool = True) -> Device:
    """The figures of this machine. Without `mlx`, which takes a second to import, those of its GPU are unknown."""
    facts, gpu, backend = identity.identity(), None, None
    chip = str(facts["cpu"])
    if mlx:
        from engine.model import backend as of_mlx

        backend, nbytes = of_mlx.backend(), of_mlx.gpu_memory_bytes()
        gpu = None if nbytes is None else nbytes / GB * (CUDA_SHARE if backend == "cuda" else 1)
        chip = of_mlx.device_name() if backend == "cuda" else chip
    return Device(AUTO, chip, backend, facts["cores"], memory_gb=identity.memory_gb(), gpu_memory_gb=gpu)


def limits_of(config: Mapping[str, Any], here: Device) -> Device:
    """The limits of the group `device` of a study: its figures, and those of this machine where it gives none."""
    given = _given(config)
    own = given.memory_gb is None or given.name == AUTO
    return dataclasses.replace(
        given,
        memory_gb=here.memory_gb if given.memory_gb is None else given.memory_gb,
        gpu_memory_gb=here.gpu_memory_gb if own and given.gpu_memory_gb is None else given.gpu_memory_gb,
    )


def foreign_name(config: Mapping[str, Any], here: Device) -> str | None:
    """The name of a profile, or of a set of limits, that is not this machine; None if it is, and for `auto`."""
    given = _given(config)
    return None if given.name == AUTO or given.is_here(here) else given.name


def profile(name: str) -> Device:
    """The profile of this name, for a forecast; `auto` is this machine. Raises `ConfigError` for an unknown name."""
    if name == AUTO:
        return this_machine()
    known = profiles()
    if name not in known:
        raise ConfigError(f"device={name} is unknown; {did_you_mean(name, [AUTO, *known])}")
    return _given(known[name])
