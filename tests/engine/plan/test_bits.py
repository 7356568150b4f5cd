"""Bits: the budget is met, the exponent ranks experts as documented, and knobs without effect are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import a_profile

from engine import Checkpoint, KnobError, Knobs
from engine.__main__ import main
from engine.checkpoint.store.description import Description
from engine.plan.banks import plan_banks
from engine.plan.bits import allocate, compute_plan, importance, weights_of
from engine.routing.profile import Profile

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def as_store(source: Checkpoint) -> Checkpoint:
    """The checkpoint as if it were packed at 2 and 4 bits."""
    return dataclasses.replace(source, store=Description((2, 4), "made up", (), ()))


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 3), st.floats(0, 1), st.integers(0, 9), st.booleans(),
)  # fmt: skip
def test_the_budget_is_met_to_within_an_expert(
    layers: int, experts: int, projections: int, share: float, seed: int, even: bool
) -> None:
    rng = np.random.default_rng(seed)
    shape = layers, experts, projections
    low = np.full(shape, 2, np.uint8)
    more = np.full(shape, 2) if even else rng.integers(0, 3, shape)  # some have at most `low` bits as stored
    high = (low + more).astype(np.uint8)
    weights = np.full(shape, 64) if even else rng.integers(1, 100, shape) * 64
    weights[-1, experts // 2 + 1 :] = 0  # the last layer has fewer experts
    worth = rng.random(shape) * rng.integers(0, 2, shape)
    bits = allocate(low, high, weights, worth, share)
    assert bits.dtype == np.uint8 and np.array_equal(bits, allocate(low, high, weights, worth, share))

    raised = ((bits > low) & (weights > 0)).sum(axis=2, keepdims=True) > 0
    cost = ((high.astype(int) - low) * weights).sum(axis=2, keepdims=True)
    assert np.array_equal(np.where(weights > 0, bits, 0), np.where(weights > 0, np.where(raised, high, low), 0))
    left = round(share * cost.sum()) - cost[raised].sum()
    waiting = cost[~raised & (cost > 0)]
    assert left >= 0 and (not len(waiting) or left < waiting.min())
    density = np.where(cost > 0, np.where(high > low, worth, 0) * (weights > 0), 0).sum(axis=2, keepdims=True)
    density = density / np.maximum(cost, 1)
    if even and raised.any() and len(waiting) and len(np.unique(cost[cost > 0])) == 1:
        assert density[raised & (cost > 0)].min() >= density[~raised & (cost > 0)].max() * (1 - 1e-5)


HAND = np.array([[[4, 1, 1], [1, 1, 1]], [[1, 9, 1], [2, 0, 0]], [[0, 0, 0], [3, 3, 3]]], float)


@pytest.mark.parametrize(
    ("share", "hot"),
    [
        (0.5, [[[1, 1, 1], [0, 0, 0]], [[1, 1, 1], [0, 0, 0]], [[0, 0, 0], [1, 1, 1]]]),
        (0.3, [[[0, 0, 0]] * 2, [[1, 1, 1], [0, 0, 0]], [[0, 0, 0]] * 2]),  # 1.8 of 6 experts rounds down to one
        (0.0, np.zeros((3, 2, 3))),
        (1.0, np.ones((3, 2, 3))),
    ],
)
def test_hot_experts_by_hand(share: float, hot: Any) -> None:
    low, high, weights = np.full((3, 2, 3), 2, np.uint8), np.full((3, 2, 3), 4, np.uint8), np.full((3, 2, 3), 10)
    assert np.array_equal(allocate(low, high, weights, HAND, share) == 4, np.array(hot, bool))


def test_ties_go_by_layer_and_expert_whatever_the_rounding() -> None:
    """Importances that differ only by float32 rounding."""
    low, high, weights = np.full((6, 11, 3), 2, np.uint8), np.full((6, 11, 3), 4, np.uint8), np.full((6, 11, 3), 64)
    worth = 0.1 * (1 + np.random.default_rng(0).uniform(-1e-8, 1e-8, (6, 11, 3)))
    bits = allocate(low, high, weights, worth, 0.5)
    assert (bits[:3] == 4).all() and (bits[3:] == 2).all()


def test_the_exponent_of_frequency(source: Checkpoint) -> None:
    profile, shape = a_profile(source), weights_of(source).shape
    mixed = {"cold_bits": 2, "expert_bits": 4, "freq_exponent": 0.0}

    def worth(**exponents: float) -> np.ndarray:
        return importance(source, Knobs.from_mapping({**mixed, **exponents}), profile)

    frequency = np.broadcast_to((profile.uses / profile.uses.sum(axis=1, keepdims=True))[..., None], shape)
    assert (worth() == 1).all()
    assert np.allclose(worth(freq_exponent=1), frequency) and np.allclose(worth(freq_exponent=0.5), frequency**0.5)
    assert np.array_equal(worth(freq_exponent=1), importance(source, Knobs(cold_bits=2), profile))


def test_the_most_used_experts_of_all_layers_are_hot(source: Checkpoint) -> None:
    """A layer without uses has no hot expert; layers may differ in size."""
    first, second, third = source.layers
    fewer = tuple(dataclasses.replace(t, file=t.file[:9], offset=t.offset[:9]) for t in second.tensors)
    odd = dataclasses.replace(source, layers=(first, dataclasses.replace(second, tensors=fewer), third))
    uses = np.zeros((3, 16), np.int64)
    uses[0], uses[1, :9] = np.arange(16) + 1, 50
    plan = compute_plan(odd, Knobs(cold_bits=2, hot_share=20 / 41), Profile(uses))
    hot = plan.bits == 16
    assert (hot[1, :9]).all() and (plan.bits[1, 9:] == 0).all() and not hot[2].any()
    assert np.array_equal(hot[0].all(axis=1), np.arange(16) >= 5) and hot.sum() == 3 * 20
    assert plan.average_bits == pytest.approx(2 + 14 * 20 / 41)
    banks = plan_banks(odd, Knobs(cold_bits=2, cache_gb=1), plan)
    assert [(b.layer, len(b.members), b.least, bool(b.requantize)) for b in banks] == [
        (0, 11, 4, False), (0, 5, 4, True), (1, 9, 4, False), (2, 16, 4, True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"freq_exponent": 0.5}, "freq_exponent=0.5 has no effect without cold_bits"),
        ({"cold_bits": 2, "freq_exponent": 2.5}, "freq_exponent=2.5 is outside 0 .. 2"),
        ({"cold_bits": 4, "expert_bits": 3}, "cold_bits=4 is above expert_bits=3"),
        ({"bits_plan": "p", "hot_share": 0.5}, "hot_share=0.5 has no effect with bits_plan=p"),
        ({"bits_plan": "p", "cold_bits": 2}, "cold_bits=2 has no effect with bits_plan=p"),
    ],
)
def test_knobs_without_effect_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(KnobError) as e:
        Knobs.from_mapping(values)
    assert str(e.value).startswith(message) and "\n" not in str(e.value)


def test_a_width_that_the_store_does_not_have_is_refused(source: Checkpoint) -> None:
    with pytest.raises(KnobError, match=r"cold_bits=3 is not a level of the store .*; use one of 2, 4"):
        compute_plan(as_store(source), Knobs(cold_bits=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--average-bits", "1.5"], "average_bits=1.5 is below the lowest that expert_bits and cold_bits can give (2)"),
        (["--average-bits", "5"], "average_bits=5 is above the highest that expert_bits and cold_bits can give (4)"),
        (["--average-bits", "3", "--hot-share", "0.5"], "--hot-share has no effect: plan --average-bits sets the budget"),
        (["--trace", "nowhere"], "trace nowhere cannot be read"),
        (["--out", "no/folder/p"], "the plan no/folder/p cannot be written"),
        (["--plot", "no/folder/p.png"], "the plot no/folder/p.png cannot be written"),
        (["--plot", "p.docx"], "the plot p.docx cannot be written"),
    ],
)
def test_mistakes_on_the_command_line(source: Checkpoint, capsys: Capture, options: list[str], message: str) -> None:
    assert main(["plan", str(source.path), "--expert-bits", "4", "--cold-bits", "2", "--freq-exponent", "0", *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_average_bits_needs_cold_bits(source: Checkpoint, capsys: Capture) -> None:
    assert main(["plan", str(source.path), "--average-bits", "3"]) == 2
    assert "average_bits=3 has no effect without cold_bits" in capsys.readouterr().err
