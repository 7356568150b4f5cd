"""Parsing a space: conditions, steps, bounds that depend on the machine, and one line for each mistake."""

from __future__ import annotations

import json
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import Knobs
from harness import ConfigError
from harness.space.parse import space_from_config
from harness.space.space import Space

BOUNDS = {"one_token": 11.90437, "all_experts": 571.0, "memory_gb": 96.0, "limit_gb": 72.0, "resident": 10.8,
          "cores": 12.0}  # fmt: skip
FOUR = {"type": "int", "low": 1, "high": 4}
CHAIN: dict[str, Any] = {
    "prefetch_depth": {"type": "int", "low": 1, "high": 4, "when": {"prefetch": "stale_gate"}},
    "cache_gb": {"type": "float", "low": 1, "high": 9, "step": 0.25},
    "prefetch": {"type": "choice", "values": ["off", "stale_gate"], "when": {"sync_window": 1}},
    "sync_window": {"type": "ordinal", "values": [1, 4, "all"]},
    "expert_bits": {"type": "ordinal", "values": [3, 4, None]},
    "cold_bits": {"type": "ordinal", "values": [2, None]},
    "hot_share": {"type": "float", "low": 0.1, "high": 0.9, "when": {"cold_bits": [2]}},
}


def space(**entries: Any) -> Space:
    return space_from_config({"cache_gb": {"type": "float", "low": 1, "high": 9}} | entries, {}, BOUNDS)


def refused(message: str, **entries: Any) -> None:
    with pytest.raises(ConfigError) as e:
        space(**entries)
    assert message in str(e.value) and "\n" not in str(e.value)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Any subset of the entries, each with or without its condition."""
    pool = {
        **CHAIN,
        "prefetch_width": {"type": "float", "low": 1, "high": 2, "step": 0.3, "when": {"prefetch": "stale_gate"}},
        "evict_half_life": {"type": "float", "low": 1, "high": 256, "log": True},
        "pinned_share": {"type": "float", "low": 0, "high": 0.5, "step": 0.05},
        "cold_drop": {"type": "float", "low": 0, "high": 1.5, "when": {"sync_window": 1}},
        "read_block_kib": {"type": "ordinal", "values": [64, 256, 1024]},
        "read_threads": {"type": "int", "low": 1, "high": 16, "step": 3},
        "io_mode": {"type": "choice", "values": ["buffered", "direct"]},
        "cold_bits": {"type": "ordinal", "values": [2, 4, None]},
    }
    names = draw(st.lists(st.sampled_from(sorted(pool)), min_size=1, unique=True))
    config = {}
    for name in names:
        entry = dict(pool[name])
        if not set(entry.get("when", {})) <= set(names) or draw(st.booleans()):
            entry.pop("when", None)
        config[name] = entry
    return space_from_config({"cache_gb": 2.0} | config, {})


@settings(max_examples=60, deadline=None)
@given(spaces(), st.integers(0, 2**31))
def test_suggested_settings_are_legal_and_map_back_to_their_parameters(space: Space, seed: int) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(4):
        trial = study.ask()
        values = space.suggest(trial)
        params = study.get_trials(deepcopy=False)[-1].params
        knobs = Knobs.from_mapping(values)
        assert {name: d for name, d in space.distributions().items() if name in params} == trial.distributions
        chosen = {e.name: e.decode(params[e.name]) for e in space.entries if e.name in params}
        assert space.active(chosen) == tuple(chosen)
        assert set(values) <= set(chosen) | set(space.fixed)  # no knob whose condition does not hold
        assert space.values(params) == values
        assert space.values(space.params(space.from_row(knobs.as_dict()))) == values
        study.tell(trial, 0.0)


@settings(max_examples=30, deadline=None)
@given(spaces())
def test_a_space_survives_its_configuration(space: Space) -> None:
    assert space_from_config(json.loads(json.dumps(space.as_config())), {}) == space


def test_conditions_may_be_chained_in_any_order() -> None:
    space = space_from_config(CHAIN, {})
    assert not space.flat
    assert [e.name for e in space.entries].index("prefetch") < [e.name for e in space.entries].index("prefetch_depth")
    rest = {"cache_gb": 2.0, "expert_bits": 1, "cold_bits": 1}
    assert space.values({**rest, "sync_window": 2}) == {
        "cache_gb": 2.0, "expert_bits": 4, "cold_bits": None, "sync_window": 0,
    }  # fmt: skip
    assert space.values({**rest, "sync_window": 0, "prefetch": "stale_gate", "prefetch_depth": 3})["prefetch_depth"] == 3
    assert "prefetch_depth" not in space.params({"prefetch": "off"})
    with pytest.raises(ConfigError, match="prefetch_depth=2 exists only with prefetch=stale_gate; set that too"):
        space.params({"prefetch_depth": 2})
    with pytest.raises(ConfigError, match="prefetch is missing"):
        space.values({**rest, "sync_window": 0})


def test_conditions_on_fixed_knobs_are_resolved() -> None:
    on = space_from_config({**CHAIN, "sync_window": 1, "prefetch": "stale_gate"}, {})
    assert on.entry("prefetch_depth").when == ()
    off = space_from_config({**CHAIN, "sync_window": "all"}, {})
    assert "prefetch" not in off.as_dict() and "prefetch_depth" not in off.as_dict()


def test_bounds_of_machine_and_model() -> None:
    assert space(cache_gb=["one_token", "0.75 * memory_gb"]).entry("cache_gb").ends() == (11.91, 72.0)
    assert space(read_threads=[1, "0.7*cores"]).entry("read_threads").ends() == (1, 8)
    stepped = space(cache_gb={"type": "float", "low": "one_token", "high": "limit_gb", "step": 10}).entry("cache_gb")
    assert stepped.ends() == (11.91, 71.91)
    assert [stepped.decode(raw) for raw in (12.0, 20.0, 71.91)] == [11.91, 21.91, 71.91]


@pytest.mark.parametrize(
    ("message", "entries"),
    [
        ("cache_gb.low=all_experts (571) is above its high=limit_gb (72)", {"cache_gb": ["all_experts", "limit_gb"]}),
        (
            "=memory is not a number, a known name, NUMBER * NAME or a sum of these; did you mean memory_gb?",
            {"cache_gb": [1, "memory"]},
        ),
        ("cache_gb.high=memory_gb / 8 is not a number", {"cache_gb": [1, "memory_gb / 8"]}),
        ("0 * memory_gb (0): cache_gb=0 is out of range", {"cache_gb": ["0 * memory_gb", 4]}),
        ("cache_gb=[1, 2, 3] is not a range [low, high]", {"cache_gb": [1, 2, 3]}),
        ("cache_gb.step=9 is longer than its range", {"cache_gb": {"type": "float", "low": 1, "high": 3, "step": 9}}),
        ("step=0 is not a number above 0", {"cache_gb": {"type": "float", "low": 1, "high": 3, "step": 0}}),
        ("does not go with log", {"cache_gb": {"type": "float", "low": 1, "high": 3, "step": 1, "log": True}}),
        ("cache_gb can have one value each", {"cache_gb": [2, 2]}),
        ("read_threads is a whole number; use int", {"read_threads": {"type": "float", "low": 1, "high": 3}}),
        ("expert_bits=7 is not a width", {"expert_bits": {"type": "int", "low": 2, "high": 8}}),
        ("circle", {"read_threads": {**FOUR, "when": {"io_mode": "direct"}},
                    "io_mode": {"type": "choice", "values": ["buffered", "direct"], "when": {"read_threads": 2}}}),
        ("prefech is not a knob; did you mean prefetch?", {"read_threads": {**FOUR, "when": {"prefech": "off"}}}),
        ("neither in the search space nor fixed", {"read_threads": {**FOUR, "when": {"io_mode": "direct"}}}),
        ("io_mode=dirct is unknown; did you mean direct?", {"read_threads": {**FOUR, "when": {"io_mode": "dirct"}}}),
        ("when.cold_bits=3 never holds", {"cold_bits": {"type": "ordinal", "values": [2, None]},
                                          "hot_share": {"type": "float", "low": 0.1, "high": 1, "when": {"cold_bits": 3}}}),
        ("when=4 is not a condition", {"read_threads": {**FOUR, "when": 4}}),
    ],
)  # fmt: skip
def test_one_line_for_each_mistake(message: str, entries: dict[str, Any]) -> None:
    refused(message, **entries)


def test_an_empty_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="no knob that varies"):
        space_from_config({"cache_gb": 1}, {})


def test_a_bound_may_subtract() -> None:
    bounds = {"limit_gb": 72.0, "resident": 24.5}
    space = space_from_config({"cache_gb": [1, "limit_gb - resident"], "read_threads": [1, 4]}, {}, bounds)
    assert space.entry("cache_gb").high == 47.5
    space = space_from_config({"cache_gb": [1, "0.5 * limit_gb - resident + 1"], "read_threads": [1, 4]}, {}, bounds)
    assert space.entry("cache_gb").high == 12.5
    with pytest.raises(ConfigError, match="is above its high"):
        space_from_config({"cache_gb": [60, "limit_gb - resident"], "read_threads": [1, 4]}, {}, bounds)
