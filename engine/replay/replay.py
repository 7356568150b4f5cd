"""Replay: the figures of a setting on recorded or made-up passes, as the engine would count them (`dry_run`)."""

from __future__ import annotations

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError
from engine.knobs import Knobs
from engine.routing.profile import Profile, routing_profile
from engine.routing.traces.recording import Recording

from .dry_run import DryRun
from .exactness import predictions_lack, why_not_exact
from .result import ReplayResult
from .sizes import Sizes, banks_of, shape_of


def replay(
    recording: Recording,
    model: Checkpoint | Sizes,
    knobs: Knobs,
    *,
    chunk: int | None = None,
    timed_tokens: int | None = None,
    profile: Profile | None = None,
) -> ReplayResult:
    """Return what a run of `knobs` misses and reads on the passes of `recording`.

    `model` is a checkpoint, also that of a shape without files, or sizes alone. `chunk`: tokens of a prompt in one pass. By
    default it is `prefill_chunk`; with `prefill_chunk=auto` the passes are as recorded. The figures cover the first
    `timed_tokens` decoded tokens, by default all. `profile`: how often each expert is used, for knobs that depend on it; by
    default the checkpoint's, or the recording's own uses if the model has no files.

    Raises `HeadraceError` for a recording that does not fit the model, and `KnobError` as `engine.load` does.
    """
    model = model.with_top_k(knobs.top_k) if isinstance(model, Checkpoint) else model
    layers, experts, top_k = shape = shape_of(model)
    found = recording.experts.shape
    if (found[1], found[2]) != (layers, top_k) or recording.experts.max(initial=-1) >= experts:
        raise HeadraceError(
            f"{recording.source} ({recording.shape}) does not fit {model.name}, which has {layers} layers of {experts} "
            f"experts, top-{top_k}; give one that was recorded on it"
        )
    banks = banks_of(model, knobs, lambda: profile or _profile(model, recording, shape))
    passes = list(recording.in_chunks(chunk or knobs.prefill_chunk or None))
    run = DryRun(recording, banks, knobs, files=len(model.files) if isinstance(model, Checkpoint) else 1, top_k=top_k)
    reasons = why_not_exact(recording, model, knobs, cut=bool(chunk or knobs.prefill_chunk))
    reasons += predictions_lack(recording, run.pairs, run.number, passes)
    by_token, wasted_bytes = run.through(passes, timed_tokens)
    members = sum(len(bank.members) for bank in banks)
    return ReplayResult(by_token, sum(bank.slots for bank in banks), members, wasted_bytes, tuple(reasons))


def _profile(model: Checkpoint | Sizes, recording: Recording, shape: tuple[int, int, int]) -> Profile:
    if isinstance(model, Checkpoint) and model.files:
        return routing_profile(model)
    uses = np.zeros(shape[:2], np.int64)
    token, layer, rank = np.nonzero(recording.experts >= 0)
    np.add.at(uses, (layer, recording.experts[token, layer, rank]), 1)
    return Profile(uses)
