"""Exactness: each reason why a replay is not the engine's own is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from traces import routing

from engine import Checkpoint, Knobs
from engine.replay.exactness import predictions_lack, why_not_exact
from engine.replay.sizes import Sizes
from engine.routing.traces.recording import Recording

MADE = Recording.made_up(routing(30, 3, 4, 16), 10, "trace t")


@pytest.fixture(scope="module")
def source(checkpoint: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.open(checkpoint("deepseek_v3", 8))


def reasons(
    model: Checkpoint | Sizes, knobs: dict[str, Any], recording: Recording = MADE, *, cut: bool = False
) -> list[str]:
    return why_not_exact(recording, model, Knobs(cache_gb=1, **knobs), cut=cut)


def test_a_made_up_trace_is_exact_on_sizes_and_on_a_checkpoint(source: Checkpoint) -> None:
    assert reasons(Sizes(3, 16, 4, 100), {}, cut=True) == reasons(source, {"expert_bits": 4}) == []


def test_other_routing_is_a_reason(source: Checkpoint) -> None:
    own = dataclasses.replace(MADE, lossy={"expert_bits": 4}, fingerprint=source.fingerprint)
    assert reasons(source, {"expert_bits": 4}, own) == []
    assert reasons(source, {}, own) == ["trace t was recorded with expert_bits=4, not no lossy knob: the routing differs"]
    stored = dataclasses.replace(own, lossy={"expert_bits": 8, "top_k": 4})  # the checkpoint's own
    assert reasons(source, {}, stored) == []
    other = dataclasses.replace(own, fingerprint="other")
    assert reasons(source, {"expert_bits": 4}, other) == [f"trace t was recorded on another checkpoint than {source.name}"]


def test_a_shape_and_a_part_of_a_pass_are_reasons(source: Checkpoint) -> None:
    shape = dataclasses.replace(source, files=())
    assert reasons(shape, {}) == [
        f"{source.name} is a shape without files: an expert's tensors are taken to follow one another"
    ]
    part = Recording.made_up(MADE.experts, 10, "trace t")
    part.experts[:9, 2] = -1
    assert reasons(source, {}, part) == [] and "a part of a pass" in reasons(source, {}, part, cut=True)[0]


def test_predictions_are_needed_for_every_pair_and_token() -> None:
    passes, pairs = [*MADE.in_chunks(None)], [(0, 1), (1, 2), (0, 2)]
    both = {(d, 4): np.zeros((30, 3, 4), np.int32) for d in (1, 2)}
    assert predictions_lack(MADE, [], 4, passes) == []
    assert predictions_lack(dataclasses.replace(MADE, predicted=both), pairs, 4, passes) == []
    assert predictions_lack(dataclasses.replace(MADE, predicted=both), pairs, 6, passes) == [
        "trace t has no predictions of 6 experts 1 layer ahead; those are replayed without prefetch"
    ]
    both[2, 4][:10, 0] = -1  # the prompt, in a pass of ten tokens
    recording = dataclasses.replace(MADE, predicted=both)
    assert predictions_lack(recording, pairs, 4, passes) == []
    assert predictions_lack(recording, pairs, 4, [*MADE.in_chunks(9)]) == [
        "trace t has no predictions for 1 tokens that are passes of their own here"
    ]
    del both[2, 4]
    assert "2 layers ahead" in predictions_lack(dataclasses.replace(MADE, predicted=both), pairs, 4, passes)[0]
