"""Mode: the path that a measurement took through the engine, in words."""

from __future__ import annotations

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.rehearsal import ABOUT, read_rehearsal
from engine.knobs import Knobs
from engine.model.backend import backend, compute_dtype


def mode_of(knobs: Knobs, source: Checkpoint) -> str:
    """The path under these knobs, e.g. `streamed float32 cpu buffered`."""
    kind = "streamed" if knobs.cache_gb is not None else "resident" if knobs.lossy else "reference"
    dtype = str(compute_dtype() or "as-stored").removeprefix("mlx.core.")
    words = [kind, dtype, backend()]
    if kind == "streamed":
        words.append(knobs.io_mode)
        if knobs.ssd_gbps is not None:
            words.append(f"held-to-{knobs.ssd_gbps:g}-GB/s")
    return " ".join(words) + (f", {ABOUT}" if read_rehearsal(source.path) is not None else "")
