"""Effective settings: refusal and removal follow from the same declared needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import KnobError, Knobs
from engine.effective import effective
from engine.knobs import BITS, DEFAULTS, NEEDS, NEEDS_MISSES, enabling, idle

share = st.floats(0, 1).map(lambda x: round(x, 2))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "cache_gb": st.none() | st.sampled_from([0.5, 2.0, 4.0]), "evict_half_life": st.sampled_from([1.0, 16.0, 64.0]),
    "cache_layer_shape": st.sampled_from([0.0, 0.3]), "pinned_share": st.sampled_from([0.0, 0.2]),
    "prefetch": st.sampled_from(["off", "stale_gate"]), "prefetch_depth": st.integers(0, 9),
    "prefetch_width": st.sampled_from([1.0, 1.5]),
    "sync_window": st.integers(-1, 9), "read_block_kib": st.sampled_from([64, 4096]), "read_threads": st.integers(1, 16),
    "io_mode": st.sampled_from(["buffered", "direct"]), "prefill_chunk": st.sampled_from([1, 512]),
    "verify_reads": st.booleans(), "ssd_gbps": st.none() | st.just(0.3),
    "gpu_keep_warm": st.booleans(), "mlx_ops_per_buffer": st.none() | st.just(20),
    "mlx_mb_per_buffer": st.none() | st.just(50), "mlx_fast_synch": st.booleans(),
    "mlx_cuda_graphs": st.booleans(),
    "expert_bits": st.none() | st.sampled_from(BITS), "cold_bits": st.none() | st.sampled_from(BITS),
    "hot_share": st.none() | share | st.sampled_from([0.0, 1.0]),
    "freq_exponent": st.sampled_from([0.0, 1.0]), "bits_plan": st.none() | st.just("plan.parquet"),
    "cold_drop": st.sampled_from([0.0, 0.5, 1.0]), "cache_prior": st.sampled_from([0.0, 0.5]),
    "top_k": st.none() | st.integers(1, 4), "resident_bits": st.none() | st.sampled_from([4, 8]),
}  # fmt: skip
mappings = st.fixed_dictionaries({}, optional=VALUES)


@dataclass(frozen=True)
class Sizes:
    """The footprint of a model of 4 layers, top-3, stored at 8 bits: 1 GB at 2 bits."""

    all_experts_gb: float
    moe_layers: int = 4
    top_k: int = 3
    expert_bits: int = 8


def footprint(knobs: Knobs) -> Sizes:
    return Sizes((knobs.expert_bits or 8) / 2)


def test_every_knob_has_values() -> None:
    assert tuple(VALUES) == Knobs.names()


@pytest.mark.parametrize("of", [None, footprint], ids=["knobs", "model"])
@settings(max_examples=400, deadline=None)
@given(values=mappings)
def test_what_is_left_is_legal_and_has_an_effect(of: Any, values: dict[str, Any]) -> None:
    kept = effective(values, of)
    knobs = Knobs.from_mapping({name: value for name, value in kept.items() if value is not None})
    assert set(kept) <= set(values)
    assert effective(kept, of) == kept
    full = knobs.as_dict()
    assert not [name for name in kept if name in idle(full)]
    if "expert_bits" in values or values.get("hot_share") != 0:  # no name is added
        assert Knobs.from_mapping({**DEFAULTS, **effective(full, of)}) == knobs


@settings(max_examples=400, deadline=None)
@given(values=mappings)
def test_knobs_refuse_exactly_what_is_removed(values: dict[str, Any]) -> None:
    """A removed value has an unmet need, and a refused value is removed."""
    full = {**DEFAULTS, **{name: value for name, value in values.items() if value is not None}}
    if full["cold_bits"] is not None and full["cold_bits"] > (full["expert_bits"] or 99):
        full["cold_bits"] = None
    without = {name for name in idle(full) if full[name] != DEFAULTS[name]}
    if without:
        with pytest.raises(KnobError, match=r"has no effect|is not possible") as e:
            Knobs.from_mapping(full)
        assert str(e.value).split("=")[0] in without
    else:
        Knobs.from_mapping(full)
    reduced = Knobs(**{name: DEFAULTS[name] if name in without else value for name, value in full.items()}).as_dict()
    for name, need in idle(full).items():  # by what has an effect
        assert not need.met(reduced[need.knob], full[name])


@pytest.mark.parametrize("name", Knobs.names())
def test_a_value_is_legal_where_its_needs_are_met(name: str) -> None:
    others = enabling(name)
    assert name not in others and set(others) >= {need.knob for need in NEEDS[name]}
    changed = {"prefetch": "stale_gate", "io_mode": "direct", "bits_plan": "p", "verify_reads": True,
               "expert_bits": 4, "cold_bits": 2, "resident_bits": 4, "hot_share": 0.5, "read_block_kib": 64}  # fmt: skip
    by_type = not DEFAULTS[name] if isinstance(DEFAULTS[name], bool) else 0.5 if isinstance(DEFAULTS[name], float) else 2
    value = changed.get(name, by_type)
    knobs = Knobs.from_mapping({**others, name: value})
    assert effective(knobs.as_dict())[name] == value != DEFAULTS[name]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"expert_bits": 3, "cold_bits": 3, "hot_share": 0.5}, {"expert_bits": 3, "cold_bits": None}),
        ({"expert_bits": 3, "cold_bits": 4, "hot_share": 0.5}, {"expert_bits": 3, "cold_bits": None}),
        ({"expert_bits": 4, "cold_bits": 2, "hot_share": 1.0}, {"expert_bits": 4, "cold_bits": None}),
        ({"expert_bits": 4, "cold_bits": 2, "hot_share": 0.0}, {"expert_bits": 2, "cold_bits": None}),
        ({"expert_bits": None, "cold_bits": 2, "hot_share": 0}, {"expert_bits": 2, "cold_bits": None}),
        ({"cold_bits": 2, "hot_share": 0}, {"cold_bits": 2, "hot_share": 0}),  # no name is added
        ({"expert_bits": 4, "cold_bits": 2, "hot_share": 0.5}, {"expert_bits": 4, "cold_bits": 2, "hot_share": 0.5}),
    ],
)
def test_one_width_is_one_setting(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert effective(values) == expected


STREAMED = {"cache_gb": 0.5}
GUESS = {**STREAMED, "prefetch": "stale_gate"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"expert_bits": 8}, {"expert_bits": None}),
        ({"expert_bits": 8, "cold_bits": 2}, {"expert_bits": None, "cold_bits": 2}),
        ({"expert_bits": None, "cold_bits": 8, "hot_share": 0.5}, {"expert_bits": None, "cold_bits": None}),
        ({"expert_bits": None, "cold_bits": 16}, {"expert_bits": None, "cold_bits": 16}),  # for the engine to refuse
        ({"expert_bits": 4, "cold_bits": 8}, {"expert_bits": 4, "cold_bits": None}),
        ({"top_k": 3}, {"top_k": None}),
        ({"top_k": 2}, {"top_k": 2}),
        ({**STREAMED, "sync_window": 4}, {**STREAMED, "sync_window": 0}),
        ({**STREAMED, "sync_window": 60}, {**STREAMED, "sync_window": 0}),
        ({**STREAMED, "sync_window": 3}, {**STREAMED, "sync_window": 3}),
        ({**STREAMED, "sync_window": -1}, {**STREAMED, "sync_window": -1}),
        ({**GUESS, "prefetch_depth": 9}, {**GUESS, "prefetch_depth": 3}),
        ({**GUESS, "prefetch_depth": 2, "cache_gb": 4.0, "read_threads": 3}, {"cache_gb": 4.0, "read_threads": 3}),
        ({"cache_gb": 2.0, "sync_window": 2, "expert_bits": 4}, {"cache_gb": 2.0, "expert_bits": 4}),
        ({"cache_gb": 2.0, "sync_window": 2, "expert_bits": 8}, {"cache_gb": 2.0, "sync_window": 2, "expert_bits": None}),
    ],
)  # fmt: skip
def test_what_is_as_the_model_has_it_is_unset(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert effective(values, footprint) == expected


def test_a_model_that_says_nothing_changes_nothing() -> None:
    @dataclass(frozen=True)
    class Unknown:
        all_experts_gb: float = 0.0

    asked = {**STREAMED, "sync_window": 1, "top_k": 3, "expert_bits": 8}
    assert effective(asked, lambda knobs: Unknown()) == asked


def test_what_needs_a_cache_that_misses_says_so() -> None:
    assert set(NEEDS_MISSES) == {"evict_half_life", "cache_layer_shape", "pinned_share", "prefetch", "sync_window",
                                 "cold_drop", "cache_prior"}  # fmt: skip
