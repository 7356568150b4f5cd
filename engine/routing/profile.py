"""Routing profile: how often each expert of each layer is chosen on a fixed calibration text.

`cold_bits` and `pinned_share` need the most important experts before the first token. The profile is measured once per
checkpoint, with all experts at the checkpoint's width, and stored in the user's cache folder. A child process measures it,
so that a measured run's memory does not include it. It does not depend on any lossless knob, so quality does not either.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.errors import HeadraceError, first_line
from engine.system.strict_json import to_json
from engine.system.user_cache import cached_file, compute_apart

from .forced import rehearsed

CALIBRATION = Path(__file__).with_name("calibration.txt")
VERSION = 3  # of the file


@dataclass(frozen=True)
class Profile:
    """`uses` is int64 [layers, experts]; it is 0 for the experts that a smaller layer does not have."""

    uses: np.ndarray

    @property
    def frequency(self) -> np.ndarray:
        """Each expert's share of its layer's uses, float64; 0 in a layer without uses."""
        return self.uses / np.maximum(self.uses.sum(axis=1, keepdims=True), 1)

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash over the uses."""
        return hashlib.sha256(self.uses.tobytes()).hexdigest()[:16]

    @classmethod
    def of_trace(cls, path: str | Path, checkpoint: Checkpoint) -> Profile:
        """Sum up a trace (see `engine.routing.record`). Its layers may have the model's numbers if none is missing.

        Raises `HeadraceError` for a file that is not a trace, or belongs to a model with other layers and experts.
        """
        import pandas as pd
        import pyarrow.parquet as pq

        experts = np.array([one.experts for one in checkpoint.layers])
        try:
            schema = pq.read_schema(path)
            metadata = schema.metadata or {}
            declared = [int(metadata.get(k, n)) for k, n in ((b"num_layers", len(experts)), (b"num_experts", max(experts)))]
            rows = pd.read_parquet(path, columns=["layer", "expert", *({"token"} & {*schema.names})])
            rows = rows[rows["token"] >= 0] if "token" in rows else rows  # without a measurement's warm-up
            layer, expert = (rows[name].to_numpy(np.int64) for name in ("layer", "expert"))
        except (OSError, ValueError, TypeError) as e:
            raise HeadraceError(f"trace {path} cannot be read ({first_line(e)}); give Parquet with layer and expert") from e
        numbers = np.unique(layer)
        if len(numbers) == len(experts):
            layer = np.searchsorted(numbers, layer)
        inside = (layer >= 0) & (layer < len(experts)) & (expert >= 0)
        fits = len(rows) and inside.all() and (expert < experts[layer]).all()
        if declared != [len(experts), max(experts)] or not fits:
            found = [max(declared[0], layer.max(initial=-1) + 1), max(declared[1], expert.max(initial=-1) + 1)]
            raise HeadraceError(
                f"trace {path} has {len(rows)} rows of {found[0]} layers of {found[1]} experts, but {checkpoint.name} "
                f"has {len(experts)} of {max(experts)}; record it on this model (--trace-out)"
            )
        uses = np.zeros((len(experts), max(experts)), np.int64)
        np.add.at(uses, (layer, expert), 1)
        return cls(uses)


def routing_profile(checkpoint: Checkpoint) -> Profile:
    """Return the profile on the calibration text; it is measured now if its file does not exist. That of a rehearsal is
    counted on later tokens of its synthetic routing."""
    if (rehearsal := read_rehearsal(checkpoint.path)) is not None:
        uses = np.zeros((len(checkpoint.layers), max(layer.experts for layer in checkpoint.layers)), np.int64)
        for layer, chosen in enumerate(rehearsed(rehearsal, checkpoint)[1].swapaxes(0, 1)):
            np.add.at(uses[layer], chosen, 1)
        return Profile(uses)
    file = profile_file(checkpoint)
    if not file.exists():
        what = "the routing profile that cold_bits and pinned_share need"
        compute_apart(what, "engine.cli.offline", "profile", given=profile_request(checkpoint))
    try:
        with np.load(file) as arrays:
            return Profile(arrays["uses"])
    except Exception as e:  # damaged bytes raise almost anything in numpy and zipfile
        raise HeadraceError(f"the routing profile {file} is damaged ({first_line(e)}); remove it") from e


def profile_request(checkpoint: Checkpoint) -> str:
    """The request of the job `profile` of `engine.cli.offline`, as JSON."""
    return to_json({"checkpoint": str(checkpoint.path), "trust_code": checkpoint.trust_code})


def profile_file(checkpoint: Checkpoint) -> Path:
    """Return the path in the cache folder for the profile of this checkpoint and calibration text."""
    text = hashlib.sha256(CALIBRATION.read_bytes()).hexdigest()[:8]
    return cached_file(f"routing-{checkpoint.fingerprint}-{text}-v{VERSION}.npz")
