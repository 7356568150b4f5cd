"""The space: Optuna's parameters and knob values map to each other, and the first trials span the front."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from engine import Knobs
from engine.effective import effective
from engine.system.shipped import ROOT
from harness.propose.ask_tell import Proposal, Proposals, Search
from harness.propose.storage import open_storage
from harness.results.columns import NAMES
from harness.results.metrics import OBJECTIVES
from harness.space.parse import space_from_config
from harness.space.space import Space

SPACE = {
    "cache_gb": {"type": "float", "low": 0.01, "high": 0.1, "log": True},
    "read_block_kib": {"type": "ordinal", "values": [16, 64, 256]},
    "io_mode": {"type": "choice", "values": ["buffered", "direct"]},
    "expert_bits": {"type": "ordinal", "values": [None, 8, 4]},
    "cold_bits": {"type": "ordinal", "values": [2, 3, None]},
    "hot_share": {"type": "float", "low": 0.1, "high": 0.9},
    "read_threads": 8,
}


def test_ordered_choices_are_indices() -> None:
    space = space_from_config(SPACE, {"ssd_gbps": 0.3})
    seen = space.distributions()
    assert seen["read_block_kib"] == optuna.distributions.IntDistribution(0, 2)
    assert seen["io_mode"] == optuna.distributions.CategoricalDistribution(("buffered", "direct"))
    assert seen["cache_gb"] == optuna.distributions.FloatDistribution(0.01, 0.1, log=True)
    values = space.values({"cache_gb": 0.0123456, "read_block_kib": 2, "io_mode": "direct", "expert_bits": 0,
                           "cold_bits": 1, "hot_share": 0.5})  # fmt: skip
    assert values == {"cache_gb": 0.01235, "read_block_kib": 256, "io_mode": "direct", "expert_bits": None, "cold_bits": 3,
                      "hot_share": 0.5, "read_threads": 8, "ssd_gbps": 0.3}  # fmt: skip


def test_every_setting_is_legal_and_maps_back() -> None:
    space = space_from_config(SPACE, {})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        params = study.ask(space.distributions()).params
        values = space.values(params)
        knobs = Knobs.from_mapping(values).as_dict()
        assert space.values(space.params(space.from_row(knobs))) == values


def test_knobs_without_effect_are_left_out() -> None:
    assert effective({"cache_gb": 1.0, "cold_bits": None, "hot_share": 0.5}) == {"cache_gb": 1.0, "cold_bits": None}
    assert effective({"cache_gb": None, "read_threads": 8, "expert_bits": 4}) == {"expert_bits": 4}


def test_anchors_are_defaults_and_corners() -> None:
    space = space_from_config(SPACE, {})
    points = [space.values(p) for p in space.anchors()]
    picked = [(p["cache_gb"], p["expert_bits"], p["cold_bits"], p.get("hot_share")) for p in points]
    low, high = (4, 2, 0.1), (None, None, None)
    assert picked == [(0.03162, *high), (0.01, *low), (0.1, *high), (0.1, *low), (0.01, *high)]
    assert {(p["read_block_kib"], p["io_mode"]) for p in points} == {(256, "buffered")}  # nearest to the defaults


def test_equal_anchors_are_taken_once() -> None:
    space = space_from_config({"cache_gb": {"type": "float", "low": 0.01, "high": 0.1}}, {})
    assert [space.values(p) for p in space.anchors()] == [{"cache_gb": 0.055}, {"cache_gb": 0.01}, {"cache_gb": 0.1}]


WRITTEN = [path for path in sorted((ROOT / "search_spaces").glob("*.yaml")) if path.stem != "auto"]  # auto is derived


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.stem)
def test_the_shipped_spaces(path: Path) -> None:
    bounds = {"one_token": 11.9, "all_experts": 571.0, "memory_gb": 96.0, "limit_gb": 72.0, "resident": 10.8,
          "cores": 12.0}  # fmt: skip
    space = space_from_config(yaml.safe_load(path.read_text()), {}, bounds)
    assert space.entries and space.flat == (path.stem == "kimi_mini")  # the GP sampler needs a flat space


def opened(folder: Path, space: Space, rows: Sequence[Mapping[str, Any]] = (), *, seed: int = 0) -> Proposals:
    search = Search(OBJECTIVES, sampler="tpe", seed=seed, limit_gb=9.0)
    return Proposals(open_storage(folder), "s", search, space, space.anchors(), rows)


def row_of(p: Proposal, gb: float, status: str = "ok", **figures: Any) -> dict[str, Any]:
    given = {"trial": p.trial, "run": 0, "status": status, "origin": p.origin, "predicted_peak_gb": 0.0, "seen_peak_gb": gb}
    return {**dict.fromkeys(NAMES), **Knobs.from_mapping(p.values).as_dict(), **given, **figures}


def test_settings_are_not_repeated_while_others_are_left(tmp_path: Path) -> None:
    space = space_from_config({"cache_gb": 1.0, "read_threads": {"type": "int", "low": 1, "high": 6}}, {})
    proposals = opened(tmp_path, space)
    rows: list[dict[str, Any]] = []
    for _ in range(8):
        proposal = proposals.ask()
        rows.append(row_of(proposal, 1.0, decode_tok_s=1.0, peak_memory_gb=1.0, perplexity=2.0))
        proposals.tell(rows[-1], rows)
    trials = [r["trial"] for r in rows]
    assert trials == sorted(set(trials))  # a repeated draw leaves a gap
    assert len({r["read_threads"] for r in rows[:6]}) >= 5


def test_a_resumed_sampler_proposes_what_an_uninterrupted_one_does(tmp_path: Path) -> None:
    space = space_from_config({"cache_gb": {"type": "float", "low": 1, "high": 9}}, {})

    def search(folder: Path, reopen_every: int) -> list[float]:
        folder.mkdir()
        rows: list[dict[str, Any]] = []
        for i in range(14):
            if i % reopen_every == 0:
                proposals = opened(folder, space, rows, seed=7)
            p = proposals.ask()
            gb = p.values["cache_gb"]
            status = "ok" if gb < 7 else "oom"
            rows.append(row_of(p, gb, status, decode_tok_s=gb, peak_memory_gb=gb, perplexity=3.0))
            proposals.tell(rows[-1], rows)
        return [float(str(r["decode_tok_s"])) for r in rows]

    straight = search(tmp_path / "a", 100)
    assert search(tmp_path / "b", 2) == straight
    assert len(set(straight)) == 14


def test_the_sampler_learns_the_infeasible_region(tmp_path: Path) -> None:
    """The faster half of the space is out of memory: trials told as failed would attract TPE to it."""
    space = space_from_config({"cache_gb": {"type": "float", "low": 1, "high": 9},
                               "read_threads": {"type": "int", "low": 1, "high": 16}}, {})  # fmt: skip
    proposals = opened(tmp_path, space)
    rows: list[dict[str, Any]] = []
    for _ in range(45):
        p = proposals.ask()
        gb = p.values["cache_gb"]
        fits = gb < 5
        figures = {"decode_tok_s": gb * 10, "peak_memory_gb": gb, "perplexity": 3.0} if fits else {}
        rows.append(row_of(p, gb, "ok" if fits else "oom", **figures))
        proposals.tell(rows[-1], rows)
    late = [r["status"] for r in rows[15:]]
    assert late.count("oom") <= 6


def test_a_cache_for_all_experts_drops_knobs_that_would_be_idle() -> None:
    """The engine refuses idle knobs, and a flat space proposes them."""
    space = space_from_config(
        {"cache_gb": {"type": "float", "low": 1, "high": 4}}, {"prefetch": "stale_gate", "read_threads": 2}
    )
    space = dataclasses.replace(space, footprint=lambda knobs: Sizes(3.0))
    assert space.values({"cache_gb": 2.0}) == {"cache_gb": 2.0, "prefetch": "stale_gate", "read_threads": 2}
    assert space.values({"cache_gb": 3.0}) == {"cache_gb": 3.0, "read_threads": 2}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """A footprint of 4 layers, top-4, stored at 4 bits."""

    all_experts_gb: float
    moe_layers: int = 4
    top_k: int = 4
    expert_bits: int = 4


def test_values_equal_to_the_models_own_are_one_setting_and_map_back() -> None:
    """Rows have `all` layers and unset widths, the space lists numbers. A round must find the settings of earlier ones."""
    space = space_from_config(
        {
            "cache_gb": {"type": "float", "low": 1, "high": 9}, "sync_window": {"type": "ordinal", "values": [1, 2, 30, 60]},
            "expert_bits": {"type": "ordinal", "values": [3, 4]}, "cold_bits": {"type": "ordinal", "values": [2, 3]},
            "hot_share": {"type": "float", "low": 0.1, "high": 1, "when": {"cold_bits": [2, 3]}},
            "top_k": {"type": "int", "low": 2, "high": 4},
        },
        {},
    )  # fmt: skip
    space = dataclasses.replace(space, footprint=lambda knobs: Sizes(9.5 * (knobs.expert_bits or 4) / 4))
    params = {"cache_gb": 2.0, "sync_window": 2, "expert_bits": 1, "cold_bits": 0, "hot_share": 1.0, "top_k": 4}
    assert space.values(params) == {"cache_gb": 2.0, "sync_window": 0, "expert_bits": None, "cold_bits": None, "top_k": None}
    assert space.values({**params, "sync_window": 3}) == space.values(params)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(50):
        values = space.suggest(study.ask())
        knobs = Knobs.from_mapping(values)
        assert space.values(space.params(space.from_row(knobs.as_dict()))) == values
        assert "sync_window" not in values or knobs.expert_bits is None or knobs.cache_gb < 9.5 * 3 / 4


def test_equivalent_settings_are_not_proposed_twice(tmp_path: Path) -> None:
    """Two widths, one of which covers all experts, and a share without effect then."""
    space = space_from_config(
        {
            "cache_gb": 1.0, "expert_bits": {"type": "ordinal", "values": [2, 3]},
            "cold_bits": {"type": "ordinal", "values": [2, 3, None]}, "hot_share": {"type": "ordinal", "values": [0.5, 1.0]},
        },
        {},
    )  # fmt: skip
    proposals = opened(tmp_path, space)
    rows: list[dict[str, Any]] = []
    for _ in range(3):  # 2 bits, 3 bits, and half at each: twelve combinations
        proposal = proposals.ask()
        rows.append(row_of(proposal, 1.0, decode_tok_s=1.0, peak_memory_gb=1.0, perplexity=2.0))
        proposals.tell(rows[-1], rows)
    assert {(r["expert_bits"], r["cold_bits"]) for r in rows} == {(2, None), (3, None), (3, 2)}


def test_windows_and_prefetch_exclude_each_other() -> None:
    both = {"cache_gb": 1.0, "sync_window": 4, "prefetch": "stale_gate", "prefetch_depth": 2}
    assert effective(both) == {"cache_gb": 1.0, "sync_window": 4}
    assert effective({**both, "sync_window": 1}) == {**both, "sync_window": 1}
    assert effective({"cache_gb": 1.0, "prefetch": "off", "prefetch_depth": 2}) == {"cache_gb": 1.0, "prefetch": "off"}


def test_knobs_that_depend_on_the_cache_need_misses_and_a_check_in_every_layer() -> None:
    knobs = {"cold_drop": 0.5, "cache_prior": 0.1, "top_k": 3}
    assert effective(knobs) == {"top_k": 3}
    assert effective({**knobs, "cache_gb": 1.0, "sync_window": 4}) == {"top_k": 3, "cache_gb": 1.0, "sync_window": 4}
    assert effective({**knobs, "cache_gb": 1.0}) == {**knobs, "cache_gb": 1.0}
    space = space_from_config({"cache_gb": {"type": "float", "low": 1, "high": 4}}, knobs)

    space = dataclasses.replace(space, footprint=lambda knobs: Sizes(3.0))
    assert space.values({"cache_gb": 2.0}) == {**knobs, "cache_gb": 2.0}
    assert space.values({"cache_gb": 3.0}) == {"top_k": 3, "cache_gb": 3.0}


def test_the_corners_of_lossy_knobs_go_from_most_to_no_loss() -> None:
    space = space_from_config(
        {
            "cache_gb": {"type": "float", "low": 1, "high": 4}, "cold_drop": {"type": "float", "low": 0, "high": 1.5},
            "cache_prior": {"type": "ordinal", "values": [0, 0.1, 1]}, "top_k": {"type": "int", "low": 2, "high": 4},
            "resident_bits": {"type": "ordinal", "values": [4, 8, None]},
        },
        {},
    )  # fmt: skip
    worst = {"cold_drop": 1.5, "cache_prior": 1, "top_k": 2, "resident_bits": 4}
    best = {"cold_drop": 0, "cache_prior": 0, "top_k": 4, "resident_bits": None}
    points = [space.values(p) for p in space.anchors()]
    assert {**worst, "cache_gb": 1} in points and {**best, "cache_gb": 4} in points
