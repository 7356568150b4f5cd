"""Tests of synthetic routing: its hit rates over cache sizes are those of the trace that it was fitted to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stores import one_line

from engine import HeadraceError
from engine.replay.hit_rates import hit_rate
from engine.routing import synthetic as module
from engine.routing.fitted import DEFAULT, FITTED
from engine.routing.read import Trace, overlap, read_trace
from engine.routing.synthetic import Locality, fit, hit_rates, synthetic
from engine.system.shipped import EXPERIMENTS

SHARES = (1 / 8, 1 / 4, 1 / 2)
PLAIN = Locality(1.0, 0.7, 40.0, 0.5)


def rates(chosen: np.ndarray, experts: int, half_life: float = 16.0) -> np.ndarray:
    """Hit rates of the engine's own eviction at several cache sizes, after 16 tokens."""
    trace = Trace(Path("t"), chosen, 16)
    return np.array([hit_rate(trace, experts, max(chosen.shape[2], round(experts * share)), half_life) for share in SHARES])


@pytest.fixture(scope="module")
def recorded() -> np.ndarray:
    """256 tokens of the project's own trace: kimi_mini on held-out text."""
    return read_trace(EXPERIMENTS / "kimi_mini" / "routing_trace.parquet").experts[:256]


def test_hit_rates_are_those_of_the_trace_within_a_few_points(recorded: np.ndarray) -> None:
    found = fit(recorded[:, ::2], 64, "kimi_mini")
    made = synthetic(found, 256, 3, 64, 4, seed=7)
    apart = np.abs(rates(made, 64) - rates(recorded[:, ::2], 64))
    assert apart.mean() < 0.03 and apart.max() < 0.06
    assert abs(overlap(Trace(Path("t"), made, 16)) - overlap(Trace(Path("t"), recorded[:, ::2], 16))) < 0.06
    assert found.source == "kimi_mini" and len(found.depth) == 3


def test_parameters_are_found_again() -> None:
    """A trace that the generator made itself is fitted, without depth of its own."""
    truth = synthetic(replace(PLAIN, phrase=1.5), 200, 2, 32, 4, seed=3)
    made = synthetic(fit(truth[:128], 32), 200, 2, 32, 4, seed=4)
    assert np.abs(rates(made, 32) - rates(truth, 32)).max() < 0.08


def test_the_shipped_parameters_of_kimi_mini_fit_its_trace(recorded: np.ndarray) -> None:
    made = synthetic(FITTED["kimi_mini"], 256, 6, 64, 4, seed=7)
    assert np.abs(rates(made, 64) - rates(recorded, 64)).max() < 0.08, "256 of the 768 tokens that were fitted"
    assert DEFAULT in FITTED and all(one.source for one in FITTED.values())


def test_hit_rates_under_lru_are_exact_for_one_expert_a_token() -> None:
    """With several experts a token their order within it is averaged."""
    chosen = np.random.default_rng(0).integers(0, 6, (300, 2, 1)).astype(np.int32)
    for slots in (1, 3, 5):
        exact = [hit_rate(Trace(Path("t"), chosen[:, n : n + 1], 0), 6, slots, 1e-6) for n in range(2)]
        assert hit_rates(chosen, 6)[:, slots - 1] == pytest.approx(exact)


def test_choices_are_distinct_reproducible_and_follow_the_parameters() -> None:
    made = synthetic(PLAIN, 64, 3, 32, 5)
    assert made.shape == (64, 3, 5) and made.min() >= 0 and made.max() < 32
    assert (np.diff(np.sort(made, axis=-1), axis=-1) > 0).all()
    assert np.array_equal(made, synthetic(PLAIN, 64, 3, 32, 5)) and not np.array_equal(
        made, synthetic(PLAIN, 64, 3, 32, 5, 1)
    )
    none = Locality(0.0, 0.0, 40.0, 0.0)
    assert rates(synthetic(none, 300, 3, 32, 4), 32)[1] == pytest.approx(0.25, abs=0.05), "as by chance"
    strong = rates(synthetic(replace(PLAIN, depth=(0.3, 3.0)), 300, 2, 32, 4)[:, 1:], 32)
    assert strong[1] > rates(synthetic(PLAIN, 300, 1, 32, 4), 32)[1] + 0.05


def test_too_little_to_fit_is_one_line() -> None:
    with pytest.raises(HeadraceError, match=r"routing of 10 tokens, top-4 of 32 is too little to fit") as e:
        fit(np.zeros((10, 2, 4), np.int32), 32)
    one_line(e)


@pytest.mark.parametrize("wrong", [{"topic_tokens": 0.5}, {"popularity": -1}, {"depth": []}, {"depth": ["x"]}, {"new": 1}])
def test_impossible_parameters_are_one_line(wrong: dict[str, object]) -> None:
    assert Locality.from_mapping(PLAIN.as_dict()) == PLAIN and module.LARGEST > 1
    with pytest.raises(HeadraceError, match="impossible parameters") as e:
        Locality.from_mapping({**PLAIN.as_dict(), **wrong})
    one_line(e)
