"""Dry run: its warm-up is not counted, and what it does not compute it does not request."""

from __future__ import annotations

import dataclasses

import numpy as np
from traces import routing

from engine import Knobs
from engine.replay.dry_run import DryRun
from engine.replay.sizes import Sizes, banks_of
from engine.routing.profile import Profile
from engine.routing.traces.recording import Recording

EXPERTS = routing(40, 3, 2, 8)
SIZES = Sizes(3, 8, 2, 1000)


def run(recording: Recording, **knobs: object) -> DryRun:
    setting = Knobs.from_mapping({"cache_gb": 12e-6, **knobs})
    banks = banks_of(SIZES, setting, lambda: Profile(np.zeros((3, 8), np.int64)))
    return DryRun(recording, banks, setting, files=1, top_k=2)


def test_a_warm_up_fills_the_cache_and_is_not_counted() -> None:
    recording = Recording.made_up(EXPERTS)
    whole, _ = run(recording).through([*recording.in_chunks(None)])
    recording.passes[:10, 2] = 1
    warm, _ = run(recording).through([*recording.in_chunks(None)])
    assert all(np.array_equal(warm[name], whole[name][10:]) for name in whole) and warm["misses"].sum() > 0
    some, _ = run(recording).through([*recording.in_chunks(None)], 7)
    assert np.array_equal(some["reads"], warm["reads"][:7])


def test_a_layer_that_is_not_computed_requests_nothing() -> None:
    recording = Recording.made_up(EXPERTS)
    recording.experts[::2, 2] = -1
    counts, _ = run(recording).through([*recording.in_chunks(None)])
    requests = counts["hits"] + counts["misses"]
    assert requests.tolist() == [4, 6] * 20


def test_layers_predict_the_next_ones_that_may_miss() -> None:
    recording = dataclasses.replace(Recording.made_up(EXPERTS), predicted={(1, 2): EXPERTS})
    assert run(recording).pairs == [] and run(recording, prefetch="stale_gate").pairs == [(0, 1), (1, 2)]
    assert run(recording, prefetch="stale_gate", prefetch_depth=2).pairs == [(0, 1), (0, 2), (1, 2)]
    assert run(recording, prefetch="stale_gate", prefetch_depth=0).pairs == []
