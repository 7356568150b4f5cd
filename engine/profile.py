"""Routing profile: which experts of each layer are used the most, on a fixed calibration text.

`hot_share` and `pinned_share` need to know the most used experts before the first token. The profile is taken once for a
checkpoint, in a process of its own (so that it leaves no trace in the memory of a measured run), with all experts at the
checkpoint's width, and kept in the user's cache folder. It does not depend on any lossless knob, so quality does not either.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from .checkpoint import Checkpoint
from .errors import HeadraceError
from .knobs import Knobs

CALIBRATION = Path(__file__).with_name("calibration.txt")


def routing_profile(checkpoint: Checkpoint) -> np.ndarray:
    """Uses of every expert on the calibration text, int64 [layers, experts]; measured now if it is not on file."""
    file = profile_file(checkpoint)
    if not file.exists():
        command = [sys.executable, "-m", "engine", "profile", "--model", str(checkpoint.path)]
        root = str(Path(__file__).resolve().parent.parent)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
        done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise HeadraceError(f"the routing profile that hot_share and pinned_share need could not be taken: {reason}")
    return np.load(file)


def profile_file(checkpoint: Checkpoint) -> Path:
    """Where the profile of this checkpoint and calibration text is kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    text = hashlib.sha256(CALIBRATION.read_bytes()).hexdigest()[:8]
    return cache / "headrace" / f"routing-{checkpoint.fingerprint}-{text}.npy"


def take_profile(checkpoint: Checkpoint) -> Path:
    """Measure the profile with the smallest cache and put it on file."""
    from .engine import load
    from .plan import footprint

    file = profile_file(checkpoint)
    with load(checkpoint.path, Knobs(cache_gb=footprint(checkpoint).one_token_gb)) as engine:
        engine.logits(engine.encode(CALIBRATION.read_text(encoding="utf-8")))
        uses = engine.uses
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f".{file.name}.{os.getpid()}")
        with open(partial, "wb") as f:
            np.save(f, uses)
        partial.replace(file)
    except OSError as e:
        raise HeadraceError(f"{file.parent} is not writable ({e.strerror}); set XDG_CACHE_HOME to a folder that is") from e
    return file
