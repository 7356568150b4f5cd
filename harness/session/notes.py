"""Notes at the start of a session: differences that do not prevent it, but matter to a reader of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from engine import Knobs
from engine.knobs import GB
from engine.measure.protocol import RESTORED
from engine.system.shipped import EXPERIMENTS
from harness.machine.identity import identity, memory_gb
from harness.run.job import Row
from harness.study.engines import is_own
from harness.study.study import Study


def start_notes(study: Study, rows: Sequence[Row]) -> list[str]:
    """Notes on a derived space, other commits in the rows, a read bandwidth limit, the size of kept prompts, and limits of
    another machine."""
    notes = [] if study.automatic is None else [*study.automatic.notes]
    commits = {row["commit"] for row in rows} - {identity()["commit"], None}
    if commits:
        notes.append(f"earlier rows were measured with commit {', '.join(sorted(c[:9] for c in commits))}")
    notes += [note for note in (bandwidth_note(study), kept_note(study)) if note is not None]
    wanted = study.config["device"]["memory_gb"]
    if study.device_profile:
        notes.append(
            f"device={study.device_profile} is not this machine: its limits hold, and all figures are measured here; "
            "device=auto takes this machine's limits"
        )
    if wanted and wanted > memory_gb():
        notes.append(f"device.memory_gb={wanted:g} is more than this machine has ({memory_gb():.1f} GB)")
    return notes


def kept_note(study: Study) -> str | None:
    """A note on the disk that kept prompts may take; None for a study that keeps none."""
    if study.prefill != RESTORED or not is_own(study.config["engine"]):
        return None
    sizes: Any = study.engine.footprint(study.checkpoint, Knobs())
    texts, limit = len(study.judge.texts), study.config["protocol"]["kept_gb"]
    routing_gb = 2 * sizes.context * sizes.moe_layers * sizes.top_k / GB
    each = texts * (sizes.parts_gb.kv + routing_gb)
    return (
        f"prompts are kept on the disk: at most {each:.2g} GB for each setting of the lossy knobs ({texts} texts of up to "
        f"{sizes.context} tokens), {limit:g} GB in all (protocol.kept_gb)"
    )


def bandwidth_note(study: Study) -> str | None:
    """A note if the device's file limits the read bandwidth and the model is the user's own."""
    limit = study.space.fixed.get("ssd_gbps")
    if limit is None or not HydraConfig.initialized() or study.checkpoint.is_relative_to(EXPERIMENTS):
        return None
    choice, overrides = HydraConfig.get().runtime.choices["device"], HydraConfig.get().overrides.task
    shipped = EXPERIMENTS / "device" / f"{choice}.yaml"
    if not shipped.is_file():
        return None  # the user's own file
    device = OmegaConf.load(shipped)
    if OmegaConf.select(device, "knobs.ssd_gbps") != limit or any("knobs.ssd_gbps=" in o for o in overrides):
        return None
    return f"reads are limited to {limit:g} GB/s by device={choice}; to remove the limit: '~knobs.ssd_gbps'"
