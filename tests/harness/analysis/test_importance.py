"""Importance: what a knob alone explains, how sure that is, and from how many points on it is shown."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import numpy as np
import pytest
from synthetic import Figures, frame, noise, searched, streamed

from harness.analysis.importance import IDLE, LEAST_POINTS, importance, terms


def two_knobs(values: dict[str, Any], rng: np.random.Generator) -> Figures:
    """The logarithm of speed is 1.0 of the number of threads (1 .. 8), 0.5 of the logarithm of half-life, and noise."""
    log = 0.3 * values["read_threads"] + 0.25 * np.log(values["evict_half_life"]) + 0.3 * rng.normal()
    return float(np.exp(log)), 1.0, 5.0


def test_shares_of_a_known_model_are_found() -> None:
    variances = {"read_threads": 0.3**2 * 63 / 12, "evict_half_life": 0.25**2 * np.log(256) ** 2 / 12, "noise": 0.3**2}
    total = sum(variances.values())
    found = [importance(frame(searched(seed, two_knobs, 200))) for seed in range(5)]
    for knob in ("read_threads", "evict_half_life"):
        shares = [f.share[knob]["decode_tok_s"] for f in found]
        assert fmean(shares) == pytest.approx(variances[knob] / total, abs=0.06)
        errors = [f.error[knob]["decode_tok_s"] for f in found]
        assert 0.5 < fmean(errors) / np.std(shares, ddof=1) < 3, "the standard error is that of the shares"
        assert all(f.share[knob]["decode_tok_s"] > 5 * f.chance[knob]["decode_tok_s"] for f in found)
    assert all(f.order[0] == "read_threads" for f in found)
    assert all(f.share["io_mode"]["decode_tok_s"] < 0.02 for f in found)
    assert found[0].objectives == ["decode_tok_s"], "what does not vary has no importance"


def test_it_is_shown_from_twenty_points_on() -> None:
    few = importance(frame(searched(0, streamed, LEAST_POINTS - 1)))
    assert (few.points, few.share) == (LEAST_POINTS - 1, {})
    enough = [importance(frame(searched(seed, streamed, LEAST_POINTS))) for seed in range(10)]
    assert all(f.share["expert_bits"]["perplexity"] > f.chance["expert_bits"]["perplexity"] for f in enough)
    top = [f.order[0] for f in enough]
    assert top.count("expert_bits") + top.count("cache_gb") >= 9


def test_on_noise_nothing_is_important() -> None:
    found = [importance(frame(searched(seed, noise))) for seed in range(10)]
    above = [f.share[k][o] > f.chance[k][o] for f in found for k in f.share for o in f.objectives]
    assert np.mean(above) < 0.05


def test_an_idle_knob_counts_where_it_has_an_effect_and_unset_is_above_all_numbers() -> None:
    block = terms([IDLE, 2, 3, None, IDLE])
    assert not block[0].any() and not block[4].any()
    assert block[1, 0] < block[2, 0] < block[3, 0]
    assert terms([1, 1, 1]).shape == (3, 0)
    assert terms(["a", "b", "c", "a"]).shape == (4, 2)
    assert importance(frame([])).points == 0
