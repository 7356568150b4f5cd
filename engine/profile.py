"""Routing profile: which experts of each layer are used the most, on a fixed calibration text.

`hot_share` and `pinned_share` need to know the most used experts before the first token. The profile is taken once for a
checkpoint, in a process of its own (so that it leaves no trace in the memory of a measured run), with all experts at the
checkpoint's width, and kept in the user's cache folder. It does not depend on any lossless knob, so quality does not either.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np

from .checkpoint import Checkpoint
from .kept import compute_apart, keep, kept_file
from .knobs import Knobs

CALIBRATION = Path(__file__).with_name("calibration.txt")


def routing_profile(checkpoint: Checkpoint) -> np.ndarray:
    """Uses of every expert on the calibration text, int64 [layers, experts]; measured now if it is not on file."""
    file = profile_file(checkpoint)
    if not file.exists():
        what = "the routing profile that hot_share and pinned_share need"
        compute_apart(what, "engine", "profile", "--model", str(checkpoint.path))
    return np.load(file)


def profile_file(checkpoint: Checkpoint) -> Path:
    """Where the profile of this checkpoint and calibration text is kept."""
    text = hashlib.sha256(CALIBRATION.read_bytes()).hexdigest()[:8]
    return kept_file(f"routing-{checkpoint.fingerprint}-{text}.npy")


def take_profile(checkpoint: Checkpoint) -> Path:
    """Measure the profile with the smallest cache and put it on file."""
    from .engine import load
    from .plan import footprint

    file = profile_file(checkpoint)
    with load(checkpoint.path, Knobs(cache_gb=footprint(checkpoint).one_token_gb)) as engine:
        engine.logits(engine.encode(CALIBRATION.read_text(encoding="utf-8")))
        uses = engine.uses
    content = io.BytesIO()
    np.save(content, uses)
    keep(file, content.getvalue())
    return file
