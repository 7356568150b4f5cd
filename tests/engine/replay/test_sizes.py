"""Sizes: the banks of a checkpoint, of a shape without files and of sizes alone agree where they can."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Checkpoint, Knobs, footprint
from engine.plan.banks import plan_banks
from engine.replay.sizes import ReadBank, Sizes, banks_of, shape_of
from engine.routing.profile import Profile


def unused() -> Profile:
    raise AssertionError("no knob depends on a profile")


@pytest.fixture(scope="module")
def source(checkpoint: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.open(checkpoint("deepseek_v3", 4))


def described(banks: list[ReadBank]) -> list[tuple[int, int, int, int, int]]:
    return [(b.layer, len(b.members), b.slots, b.slot_bytes, b.least) for b in banks]


@pytest.mark.parametrize("knobs", [{}, {"cache_layer_shape": 0.5}, {"pinned_share": 0.3}])
def test_sizes_alone_get_the_slots_of_the_plan(source: Checkpoint, knobs: dict[str, float]) -> None:
    setting = Knobs(cache_gb=footprint(source).one_token_gb * 2, **knobs)
    slot_bytes = plan_banks(source, Knobs())[0].slot_bytes
    layers, experts, top_k = shape_of(source)
    sizes = Sizes(layers, experts, top_k, source.layers[0].expert_bytes, slot_bytes)
    profile = Profile(np.tile(np.arange(experts), (layers, 1)))
    found, plan = banks_of(sizes, setting, lambda: profile), banks_of(source, setting, lambda: profile)
    assert shape_of(sizes) == (layers, experts, top_k) and described(found) == described(plan)
    assert [b.pinned.tolist() for b in found] == [b.pinned.tolist() for b in plan]
    assert [b.expert_bytes for b in found] == [b.expert_bytes for b in plan]


def test_a_checkpoint_is_read_where_its_tensors_are(source: Checkpoint) -> None:
    (bank, *_) = banks_of(source, Knobs(), unused)
    places = {(t.name, int(t.file[3]), int(t.offset[3]), t.nbytes) for t in source.layers[0].tensors}
    assert {(int(file[3]), int(offset[3]), nbytes) for file, offset, nbytes, _ in bank.ranges} == {p[1:] for p in places}
    assert not bank.quantized and bank.experts == 16


def test_an_expert_without_a_file_is_one_piece(source: Checkpoint) -> None:
    (bank, *_) = banks_of(dataclasses.replace(source, files=()), Knobs(), unused)
    ((file, offset, nbytes, _),) = bank.ranges
    assert nbytes == bank.expert_bytes == source.layers[0].expert_bytes and not file.any() and not offset.any()


def test_two_widths_are_two_banks(source: Checkpoint) -> None:
    knobs = Knobs(cold_bits=2, hot_share=0.2, freq_exponent=0)
    hot, cold, *_ = banks_of(source, knobs, unused)
    assert (hot.layer, cold.layer, hot.quantized, cold.quantized) == (0, 0, False, True)
    assert hot.slot_bytes > cold.slot_bytes and hot.expert_bytes == cold.expert_bytes
