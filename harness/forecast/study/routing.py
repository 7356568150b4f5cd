"""Routing: the choices that a study's settings are replayed on, of some of the model's layers.

A recorded trace of the model is best: `routing_trace.parquet` beside the checkpoint or in the folder above. A rehearsal
states its routing. For any other model it is made up with the localities of other models' traces, each of which is possible.
Layers are alike, so that of a deep model `FEW` at equal distances stand for all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.store.rehearsal import read_rehearsal
from engine.errors import HeadraceError
from engine.routing.fitted import FITTED
from engine.routing.profile import Profile, profile_file, routing_profile
from engine.routing.synthetic import Locality, synthetic
from engine.routing.traces.recording import Recording, read_recording
from harness.forecast.target import trace_of

PROMPT, DECODED = 128, 128  # tokens of routing that is made up
MOST_TOKENS = 384  # of a recorded trace, the last ones
FEW, MANY = 6, 12  # layers; with at most so many, all are replayed


@dataclass(frozen=True)
class Routing:
    """Recordings of `model`, which has `share` of the layers, or possible ones. `about`: where they are from. `counted`: the
    decoded tokens whose figures count, the last ones; those before them fill the cache."""

    model: Checkpoint
    share: float
    recordings: tuple[Recording, ...]
    about: str
    profile: Profile | None = None  # the engine's own, where it is there; otherwise a recording's uses stand for it
    counted: int = DECODED


def routing(checkpoint: Checkpoint) -> Routing:
    """The best routing that there is of a model. Raises `HeadraceError` for one that cannot be streamed."""
    layers = len(checkpoint.layers)
    chosen = [*range(layers)] if layers <= MANY else np.linspace(0, layers - 1, FEW).round().astype(int).tolist()
    few = dataclasses.replace(
        checkpoint, layers=tuple(checkpoint.layers[n] for n in chosen),
        records=tuple(checkpoint.records[n] for n in chosen) if checkpoint.records else (),
    )  # fmt: skip
    share = len(chosen) / layers
    trace = trace_of(checkpoint, max(layer.experts for layer in checkpoint.layers))
    if trace is not None and (found := fitting(trace, checkpoint, chosen)) is not None:
        profile = kept_profile(checkpoint)
        profile = None if profile is None else Profile(profile.uses[chosen])
        return Routing(few, share, (found,), f"the model's trace {trace.name}", profile)
    experts = min(layer.experts for layer in checkpoint.layers)
    if checkpoint.top_k >= experts:
        raise HeadraceError(f"a token uses all {experts} experts of a layer of {checkpoint.name}: nothing is streamed")
    rehearsal = read_rehearsal(checkpoint.path)
    localities, about = (*FITTED.values(),), f"made up with the localities of {', '.join(FITTED)}"
    if rehearsal is not None:
        locality = Locality.from_mapping(rehearsal.routing)
        localities, about = (locality,), f"made up with the locality of {locality.source}"
    made = (synthetic(one, PROMPT + DECODED, len(chosen), experts, checkpoint.top_k) for one in localities)
    return Routing(few, share, tuple(Recording.made_up(ids, PROMPT) for ids in made), about)


def kept_profile(checkpoint: Checkpoint) -> Profile | None:
    """The routing profile that the engine has computed for the model; None if it has not."""
    return routing_profile(checkpoint) if profile_file(checkpoint).exists() else None


def fitting(trace: Path, checkpoint: Checkpoint, chosen: list[int]) -> Recording | None:
    """The last `MOST_TOKENS` tokens of the `chosen` layers of a trace; None if it cannot be read or does not fit. What is
    predicted for later layers is kept only with all layers."""
    try:
        found = read_recording(trace)
    except HeadraceError:
        return None
    experts = min(layer.experts for layer in checkpoint.layers)
    if found.experts.shape[1:] != (len(checkpoint.layers), checkpoint.top_k) or found.experts.max() >= experts:
        return None
    recording = last(found, MOST_TOKENS)
    if len(chosen) == len(checkpoint.layers):
        return recording
    return Recording(recording.source, np.ascontiguousarray(recording.experts[:, chosen]), recording.passes)


def last(recording: Recording, tokens: int) -> Recording:
    """The last passes of a recording, with at most so many tokens, and at least the last pass."""
    begins = np.concatenate([[0], recording.passes[:-1, 0]])
    first = min(int(np.searchsorted(begins, len(recording.experts) - tokens)), len(begins) - 1)
    cut = int(begins[first])
    passes = recording.passes[first:] - np.array([cut, 0, 0, 0])
    predicted = {pair: ids[cut:] for pair, ids in recording.predicted.items()}
    return Recording(recording.source, recording.experts[cut:], passes, predicted)


def narrowed(recording: Recording, top_k: int) -> Recording:
    """The recording with the first `top_k` experts of each choice: the routing of fewer experts is not known."""
    if top_k == recording.experts.shape[-1]:
        return recording
    return Recording(recording.source, np.ascontiguousarray(recording.experts[..., :top_k]), recording.passes)


def profile_of(recording: Recording, layers: int, experts: int) -> Profile:
    """How often each expert is used in a recording."""
    uses = np.zeros((layers, experts), np.int64)
    token, layer, rank = np.nonzero(recording.experts >= 0)
    np.add.at(uses, (layer, recording.experts[token, layer, rank]), 1)
    return Profile(uses)
