"""Automatic space: what `search_space=auto` derives for a study's checkpoint on its machine, and what packing would give.

The derivation itself is `harness.space.derive`; this module collects its arguments from the checkpoint, the disk and the
machine.
"""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine import CheckpointError, HeadraceError, Knobs
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.config import model_name
from engine.disk.direct import not_direct
from engine.errors import first_line
from engine.knobs import GB
from engine.packing.estimate import Estimate, estimate
from engine.plan.reads import largest_range
from harness.machine.device import Device
from harness.space.derive import Derived, Host, Sizes, derive

from .engines import CommandEngine, PythonEngine

KEY = "auto"  # of a search space that is derived; its other entries come on top


@dataclass(frozen=True)
class Automatic:
    """A derived space, and notes for the reader: the machine, the checkpoint, what is left out, and packing."""

    derived: Derived
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For the manifest: the space as it was derived, the reason for each knob that it lacks, and the notes."""
        return {"space": self.derived.space, "left_out": self.derived.left_out, "notes": list(self.notes)}


def automatic(
    checkpoint: Path, engine: PythonEngine | CommandEngine, here: Device, limit_gb: float, fixed: Mapping[str, Any], *,
    own: bool, named: str, given: str,
) -> Automatic:  # fmt: skip
    """The space of `checkpoint` on the machine `here`, of which a run may use `limit_gb`.

    `own`: the engine is this project's, which knows its checkpoints; `named`: whose limit it is; `given`: the checkpoint as
    the user named it. Raises `ConfigError`.
    """
    host = Host(limit_gb, int(here.need("cores")), here.backend, named=named)
    cached: dict[Any, Any] = {}

    def footprint(knobs: Any) -> Any:
        if knobs not in cached:
            cached[knobs] = engine.footprint(checkpoint, knobs)
        return cached[knobs]

    sizes = Sizes(model_name(checkpoint), footprint)
    if not own:
        found = derive(sizes, host, fixed)
        return Automatic(found, (f"machine: {here}", *found.lines()))
    from engine.streaming.install import possible  # needs MLX

    source = Checkpoint.open(checkpoint)
    can = possible(source)
    sizes = Sizes(sizes.name, footprint, largest_range(source) / 1024, can.windows, can.prefetch, can.widest)
    host = Host(limit_gb, host.cores, host.backend, not_direct(source.files[-1]), named)
    found = derive(sizes, host, fixed)
    notes = [f"machine: {here}, {_disk(checkpoint)}; a run may use {limit_gb:.3g} GB", f"model: {_described(source)}"]
    if (whole := footprint(Knobs()).predicted_peak_gb) <= limit_gb:
        notes.append(f"everything fits: {whole:.3g} GB with all experts resident; streaming can only save memory")
    notes += found.lines()
    if source.levels is None:
        high = found.space.get("cache_gb", {"high": fixed.get("cache_gb")})["high"]
        notes.append(f"packing: {_packing(source, given, footprint, high)}")
    return Automatic(found, tuple(notes))


def merged(derived: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The derived entries with the given ones on top; a part of an entry, such as its `low`, replaces that part."""
    space = dict(derived)
    for name, entry in given.items():
        parts = isinstance(entry, Mapping) and "type" not in entry and isinstance(space.get(name), Mapping)
        space[name] = {**space[name], **entry} if parts else entry
    return space


def _disk(place: Path) -> str:
    usage = shutil.disk_usage(place)
    return f"disk of {usage.total / GB:.3g} GB with {usage.free / GB:.3g} free"


def _described(source: Checkpoint) -> str:
    """`60 layers of 384 experts, 8 a token, 24.8 MB each as stored (4 bits)`."""
    experts = sorted({layer.experts for layer in source.layers})
    mb = max(layer.expert_bytes for layer in source.layers) / 1e6
    levels = source.levels
    stored = f"{source.expert_bits} bits" if levels is None else f"a store of {' and '.join(map(str, levels))} bits"
    return (
        f"{len(source.layers)} layers of {' or '.join(map(str, experts))} experts, {source.top_k} a token, {mb:.3g} MB each "
        f"({stored}), {source.expert_bytes / GB:.3g} GB in all"
    )


def _packing(source: Checkpoint, given: str, footprint: Callable[[Knobs], Any], cache_gb: float) -> str:
    """What packing takes (time, disk) and gives, and its command. `cache_gb`: the largest cache of the space."""
    try:
        found = estimate(source)
    except (CheckpointError, HeadraceError) as e:
        return f"not possible: {first_line(e)}"
    free = shutil.disk_usage(source.path).free / GB
    short = f", and {free:.3g} are free on the checkpoint's disk" if free < found.store_gb else ""
    levels = ",".join(map(str, found.levels))
    shares = ", ".join(f"{share:.2g} at {bits} bits" for bits, share in zip(found.levels, found.shares, strict=True))
    fit = [f"{_held(cache_gb, footprint(Knobs()).all_experts_gb)} as stored"]
    for bits in found.levels:
        if bits < source.expert_bits:
            fit.append(f"{_held(cache_gb, footprint(Knobs(expert_bits=bits)).all_experts_gb)} at {bits} bits")
    return (
        f"a store makes the bits a knob. It takes {_time(found)} and {found.store_gb:.3g} GB of disk{short}. Of an expert's "
        f"bytes it reads {shares}, and a cache of {cache_gb:.3g} GB holds {', '.join(fit)}: "
        f"python -m engine pack --model {shlex.quote(given)} --levels {levels} STORE"
    )


def _held(cache_gb: float, all_experts_gb: float) -> str:
    """`11%`."""
    return f"{min(1.0, cache_gb / all_experts_gb):.0%}"


def _time(found: Estimate) -> str:
    """`1.0 to 1.1 h (160 to 184 MB/s, measured on two cores)`."""
    if found.seconds is None or found.mbps is None:
        return f"a time that was not measured for {found.kind}"
    low, high = found.seconds
    unit, name = (3600, "h") if high >= 3600 else (60, "min") if high >= 60 else (1, "s")
    return f"{low / unit:.2g} to {high / unit:.2g} {name} ({found.mbps[0]} to {found.mbps[1]} MB/s, measured on two cores)"
