"""Footprint: sizes follow from the tensors' shapes and change with the knobs as they should."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Checkpoint, Knobs, footprint
from engine.model.backend import compute_dtype
from engine.plan.banks import BankPlan, plan_banks, plan_bits
from engine.plan.footprint import experts_gb
from engine.plan.memory import staging


@pytest.fixture(scope="module")
def source(checkpoint: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.open(checkpoint("qwen3_moe", 4))


def test_one_token_takes_top_k_experts_of_every_layer(source: Checkpoint) -> None:
    sizes = footprint(source)
    expert = sizes.all_experts_gb / sizes.experts
    assert sizes.one_token_gb == pytest.approx(expert * sizes.top_k * sizes.moe_layers)
    assert sizes.parts_gb.experts == sizes.all_experts_gb and sizes.parts_gb.resident == sizes.resident_gb


def test_knobs_change_the_sizes_they_concern(source: Checkpoint) -> None:
    own = footprint(source)
    assert footprint(source, Knobs(cache_gb=own.one_token_gb)).parts_gb.experts == own.one_token_gb
    assert footprint(source, Knobs(expert_bits=2)).all_experts_gb < own.all_experts_gb
    assert footprint(source, Knobs(top_k=1)).one_token_gb == pytest.approx(own.one_token_gb / own.top_k)
    fewer = footprint(source, Knobs(resident_bits=2))
    assert fewer.resident_gb < own.resident_gb and fewer.all_experts_gb == own.all_experts_gb


def test_experts_are_counted_at_their_planned_bits(source: Checkpoint) -> None:
    for knobs in (Knobs(), Knobs(expert_bits=2)):
        assert experts_gb(source, plan_bits(source, knobs)) == footprint(source, knobs).all_experts_gb


def test_floats_are_widened_on_the_cpu_only(checkpoint: Callable[..., Path]) -> None:
    source = Checkpoint.open(checkpoint("qwen3_moe"))
    widening = 2 if compute_dtype() is not None else 1
    assert footprint(source).all_experts_gb * 1e9 == pytest.approx(widening * source.expert_bytes)


def test_parts_add_up_and_follow_their_causes(source: Checkpoint) -> None:
    base = footprint(source, Knobs(cache_gb=footprint(source).one_token_gb), context=100)
    assert base.predicted_peak_gb == pytest.approx(sum(vars(base.parts_gb).values()))
    assert base.parts_gb.process > 0.05
    longer = footprint(source, Knobs(cache_gb=base.one_token_gb, prefill_chunk=100), context=2000)
    assert longer.parts_gb.kv > 3 * base.parts_gb.kv and longer.parts_gb.resident == base.parts_gb.resident
    whole = footprint(source, Knobs(cache_gb=base.one_token_gb, prefill_chunk=2000), context=2000)
    assert whole.parts_gb.activations > 10 * longer.parts_gb.activations


def test_every_size_of_chunk_is_tried_with_the_same_slots(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, inner = list[list[int]](), staging.staging_bytes

    def noted(source: Checkpoint, knobs: Knobs, banks: list[BankPlan], tokens: int) -> int:
        seen.append([bank.slots for bank in banks])
        return inner(source, knobs, banks, tokens)

    own = footprint(source)
    monkeypatch.setattr(staging, "staging_bytes", noted)
    monkeypatch.setattr("engine.plan.footprint.usable_memory_bytes", lambda: 1)  # no size fits
    knobs = Knobs(cache_gb=1.3 * own.one_token_gb)
    assert footprint(source, knobs).prefill_chunk == 128
    slots = [bank.slots for bank in plan_banks(source, knobs)]
    assert len(seen) > 3 and all(one == slots for one in seen)
