"""Exactness: the reasons why a replay does not give the engine's own figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import CACHE_DEPENDENT, Knobs
from engine.routing.traces.recording import Pass, Recording

from .sizes import Sizes


def why_not_exact(recording: Recording, model: Checkpoint | Sizes, knobs: Knobs, *, cut: bool) -> list[str]:
    """One phrase for each reason, whatever the predictions are. `cut`: the prompts are not passed as recorded."""
    reasons = []
    if recording.lacks:
        reasons.append(f"{recording.source}: {recording.lacks}")
    if knobs.sync_window != 1:
        reasons.append(
            f"{knobs.shown('sync_window')}: what rejected passes read depends on what they compute; replayed as 1"
        )
    for name in CACHE_DEPENDENT:
        if name in knobs.set_names():
            reasons.append(f"{knobs.shown(name)}: choices depend on what is cached; replayed without it")
    if isinstance(model, Checkpoint):
        reasons += _of_checkpoint(recording, model, knobs)
    if cut and recording.in_part:
        reasons.append(f"{recording.source}: a layer was computed for a part of a pass, which is not cut anew")
    return reasons


def _of_checkpoint(recording: Recording, model: Checkpoint, knobs: Knobs) -> list[str]:
    reasons = []
    if not model.files:
        reasons.append(f"{model.name} is a shape without files: an expert's tensors are taken to follow one another")
    elif recording.fingerprint is not None and recording.fingerprint != model.fingerprint:
        reasons.append(f"{recording.source} was recorded on another checkpoint than {model.name}")
    then, now = (_routing(lossy, model) for lossy in (recording.lossy, knobs.lossy))
    if then is not None and then != now:
        shown = [", ".join(f"{k}={v}" for k, v in sorted((one or {}).items())) or "no lossy knob" for one in (then, now)]
        reasons.append(f"{recording.source} was recorded with {shown[0]}, not {shown[1]}: the routing differs")
    return reasons


def _routing(lossy: Any, model: Checkpoint) -> dict[str, Any] | None:
    """The lossy knobs without those that state the checkpoint's own value; None if they are not known."""
    if lossy is None:
        return None
    own = {"expert_bits": model.expert_bits, "top_k": model.top_k}
    return {name: value for name, value in lossy.items() if own.get(name) != value}


def predictions_lack(
    recording: Recording, pairs: Sequence[tuple[int, int]], number: int, passes: Sequence[Pass]
) -> list[str]:
    """The reason if not every prediction of `number` experts is recorded for the `pairs` of layers; empty otherwise."""
    tokens = np.array([one.begin for one in passes if one.end - one.begin == 1], np.int64)
    for distance in sorted({of - layer for layer, of in pairs}):
        recorded = recording.predicted.get((distance, number))
        if recorded is None:
            layers = "layer" if distance == 1 else "layers"
            return [
                f"{recording.source} has no predictions of {number} experts {distance} {layers} ahead; those are replayed "
                "without prefetch"
            ]
        asking = [layer for layer, of in pairs if of - layer == distance]
        lost = (recorded[tokens][:, asking, 0] < 0) & (recording.experts[tokens][:, asking, 0] >= 0)
        if lost.any():
            count = int(lost.any(axis=1).sum())
            return [f"{recording.source} has no predictions for {count} tokens that are passes of their own here"]
    return []
