"""Store: writes the rehearsal of a shape into a folder, finishes it, or finds it written, and removes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.cli.progress import progress
from engine.errors import HeadraceError, did_you_mean
from engine.knobs import GB
from engine.packing.random_store import clean, is_complete, plan_store, write_store
from engine.routing.fitted import DEFAULT, FITTED
from engine.routing.read import read_trace
from engine.routing.synthetic import Locality, fit
from engine.shapes.shape import Shape

RECALL = (0.886, 0.938)  # of kimi_mini's rejected passes with 0.375 of the experts cached (docs/evidence/speed.md)


@dataclass(frozen=True)
class Written:
    """A rehearsal on the disk."""

    folder: Path
    source: Checkpoint
    gb: float  # on the disk
    locality: Locality  # of its own made-up routing

    @property
    def distinct(self) -> int:
        """Layers with records of their own."""
        return len(self.source.layers) - self.source.shared_layers


def written(shape: Shape, folder: Path, disk_gb: float, locality: Locality) -> Written:
    """The rehearsal of `shape` in `folder`, which is written now unless it is there. Raises `HeadraceError`."""
    there = read_rehearsal(folder)
    if there is None or there.shape != shape.name or not is_complete(folder):
        plan = plan_store(shape, disk_gb)
        note = f"writing {(plan.resident_bytes + plan.experts_bytes) / GB:.4g} GB of random weights into {folder}"
        print(f"note: {note}; remove them with --clean", file=sys.stderr)
        with progress("writing") as update:
            write_store(plan, folder, locality.as_dict(), RECALL, update)
        there = read_rehearsal(folder)
    assert there is not None
    gb = sum((folder / name).stat().st_size for name in there.files) / GB
    return Written(folder, Checkpoint.open(folder), gb, Locality.from_mapping(there.routing))


def removed(folder: Path) -> str:
    """Remove the rehearsal in `folder`; returns a line about what was removed and what stays."""
    nbytes, left = clean(folder)
    stays = "" if not left else f"; {len(left)} other files stay there ({left[0]} is the first)"
    return f"removed {nbytes / GB:.4g} GB from {folder}{stays}"


def locality_of(given: str | None) -> Locality:
    """The locality of `--like`: fitted parameters by name, or fitted now to a trace's file. Raises `HeadraceError`."""
    if given is None or given in FITTED:
        return FITTED[given or DEFAULT]
    path = Path(given).expanduser()
    if not path.exists():
        raise HeadraceError(f"--like {given} is neither a file nor a known trace; {did_you_mean(given, [*FITTED])}")
    trace = read_trace(path)
    chosen = trace.experts[trace.prefilled :]
    return fit(chosen, int(chosen.max()) + 1, f"{path.name} ({len(chosen)} decoded tokens)")


def facts(found: Written) -> Mapping[str, Any]:
    """What was measured on, for the JSON document: sizes in GB."""
    source = found.source
    experts = source.experts
    return {
        "model": source.name, "layers": len(source.layers), "experts": max(layer.experts for layer in source.layers),
        "top_k": source.top_k, "expert_mb": source.expert_bytes / experts / 1e6, "distinct_layers": found.distinct,
        "disk_gb": found.gb, "full_experts_gb": source.expert_bytes / GB, "resident_gb": source.rest_bytes / GB,
        "gb_per_token_without_cache": source.expert_bytes / experts * source.top_k * len(source.layers) / GB,
    }  # fmt: skip
