"""Ceiling: no run reads less than the bound says, and the bound is close at the smallest cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import engine
from engine import Checkpoint, HeadraceError, Judge, Knobs, Protocol, ceiling_tok_s, footprint, load
from engine.cli.offline import take_routing
from engine.measure.judge import Text
from engine.plan.ceiling import MARGIN, Routing, _read, routing_file
from engine.system.user_cache import store_in_cache

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT[:40], TEXT[40:71]), Text("b", "prose", TEXT[::-1][:30], TEXT[30:61])))
GBPS = 0.1
WAYS: dict[str, dict[str, Any]] = {
    "buffered": {},
    "direct": {"io_mode": "direct", "read_block_kib": 4},
    "LRU": {"evict_half_life": 1e-3},
    "LFU": {"evict_half_life": 1e6, "cache_layer_shape": 0.4},
    "predicted": {"prefetch": "stale_gate", "prefetch_width": 2.0, "ssd_gbps": 0.01},
    "windows": {"sync_window": 0, "ssd_gbps": 0.01},
    "chunks": {"prefill_chunk": 7},
    "4 bits": {"expert_bits": 4},
    "two widths": {"expert_bits": 8, "cold_bits": 4, "freq_exponent": 0.0},
    "coarse attention": {"resident_bits": 8},
}


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.fixture(scope="module")
def packed(store: Callable[..., Path]) -> Path:
    return store("deepseek_v3", 8, True, levels=(2, 4, 8))


def cache_gb(path: Path, share: float, **way: Any) -> float:
    """The size of a cache for one token's experts and `share` of the others."""
    f = footprint(path, Knobs(**{"cache_gb": 1.0, **way}))
    return f.one_token_gb + share * (f.all_experts_gb - f.one_token_gb)


def test_every_text_starts_with_the_best_cache() -> None:
    experts = np.array([[[0, 1]], [[2, 3]], [[0, 1]], [[2, 3]]])
    everyone = (0, 1, 2, 3)
    assert Routing(experts, np.array([4]), 512, 9).misses(0, everyone, 2) == 6
    assert Routing(experts, np.array([2, 2]), 512, 9).misses(0, everyone, 2) == 4
    assert Routing(experts, np.array([4]), 512, 9).misses(0, everyone, 4) == 0
    assert Routing(experts, np.array([4]), 512, 9).misses(0, (0, 2), 1) == 3  # the other experts are in another bank


def checked(path: Path, share: float, way: dict[str, Any]) -> tuple[float, float]:
    """Bytes per token: the least by the ceiling, and the measured ones."""
    knobs = Knobs(**{"cache_gb": cache_gb(path, share, **way), "ssd_gbps": GBPS, **way})
    ceiling = ceiling_tok_s(path, knobs, JUDGE)
    assert ceiling is not None and knobs.ssd_gbps is not None
    with load(path, knobs) as loaded:
        measured = loaded.measure(JUDGE, Protocol(score=False))
    assert measured.decode_tok_s <= ceiling
    return knobs.ssd_gbps * 1e9 / ceiling, measured.bytes_per_token


@pytest.mark.parametrize("way", WAYS)
def test_no_run_reads_less(path: Path, way: str) -> None:
    least, measured = checked(path, 0.2, WAYS[way])
    assert 0 < least <= measured


def test_the_bound_is_close_at_the_smallest_cache(path: Path) -> None:
    """With one token's slots every miss is a read, except for the experts left by the prompt."""
    least, measured = checked(path, 0.0, {})
    assert 0.9 * measured < least <= measured


def test_a_store_counts_the_levels_in_use(packed: Path) -> None:
    source = Checkpoint.open(packed)
    store_in_cache(routing_file(source, JUDGE, Protocol()), take_routing(source, JUDGE, Protocol()))
    whole, _ = checked(packed, 0.0, {})
    two, measured = checked(packed, 0.0, {"expert_bits": 2})
    assert 0.2 * whole < two < 0.5 * whole and two <= measured


def test_the_ceiling_depends_on_timed_tokens(path: Path) -> None:
    knobs = Knobs(cache_gb=cache_gb(path, 0.0), ssd_gbps=GBPS)
    source, few = Checkpoint.open(path), Protocol(timed_tokens=35, score=False)
    store_in_cache(routing_file(source, JUDGE, few), take_routing(source, JUDGE, few))
    with np.load(routing_file(source, JUDGE, few)) as arrays:
        assert arrays["experts"].shape == (35, 3, 4) and arrays["texts"].tolist() == [30, 5]
    with load(path, knobs) as loaded:
        measured = loaded.measure(JUDGE, few)
    ceiling = ceiling_tok_s(source, knobs, JUDGE, few)
    assert ceiling is not None and ceiling != ceiling_tok_s(source, knobs, JUDGE) and measured.decode_tok_s <= ceiling


def test_other_widths_leave_a_margin(path: Path) -> None:
    def ceiling(**way: Any) -> float:
        found = ceiling_tok_s(path, Knobs(cache_gb=cache_gb(path, 0.0), ssd_gbps=GBPS, **way), JUDGE)
        assert found is not None
        return found

    assert ceiling(resident_bits=8) == pytest.approx(ceiling() / (1 - MARGIN))
    assert ceiling(io_mode="direct", read_threads=2) == ceiling()


@pytest.mark.parametrize(
    "way",
    [
        {"cache_gb": None, "ssd_gbps": None},
        {"ssd_gbps": None},
        {"cold_drop": 0.5},
        {"cache_prior": 0.5},
        {"top_k": 2},
        {"resident_bits": 3},
        {"cache_gb": 1.0},  # holds every expert
    ],
    ids=str,
)
def test_no_bound_without_a_limit_or_reads(path: Path, way: dict[str, Any]) -> None:
    assert ceiling_tok_s(path, Knobs(**{"cache_gb": cache_gb(path, 0.2), "ssd_gbps": GBPS, **way}), JUDGE) is None


def test_a_setting_that_cannot_load_has_no_ceiling(path: Path) -> None:
    with pytest.raises(engine.KnobError, match="below one token's experts"):
        ceiling_tok_s(path, Knobs(cache_gb=1e-5, ssd_gbps=GBPS), JUDGE)


def test_damaged_routing_is_named(path: Path) -> None:
    file = routing_file(Checkpoint.open(path), JUDGE, Protocol(timed_tokens=3))
    store_in_cache(file, b"no arrays")
    assert file not in _read
    with pytest.raises(HeadraceError, match=r"is damaged .*; remove it") as e:
        ceiling_tok_s(path, Knobs(cache_gb=cache_gb(path, 0.2), ssd_gbps=GBPS), JUDGE, Protocol(timed_tokens=3))
    assert "\n" not in str(e.value)
