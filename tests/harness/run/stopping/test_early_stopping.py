"""Early stopping on simulated runs whose true speed is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine import HeadraceError
from harness.run.stopping import early_stopping as early
from harness.run.stopping.early_stopping import Early

RUNS, TOKENS = 2000, 256
NOISE = 0.1


def token_times(mean_ms: float, *, runs: int = RUNS, phi: float = 0.8, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """float64 [runs, TOKENS]: lognormal times (sd half of the mean), autocorrelated from token to token by `phi`, of runs
    whose speeds have a relative standard deviation of `noise`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(runs, TOKENS))
    for token in range(1, TOKENS):
        x[:, token] = phi * x[:, token - 1] + np.sqrt(1 - phi**2) * x[:, token]
    sigma = np.sqrt(np.log(1.25))
    return mean_ms * np.exp(sigma * x - sigma**2 / 2) / (1 + noise * rng.normal(size=(runs, 1)))


def stopped(times: np.ndarray, rule: Early) -> float:
    """Share of the runs that the rule ends."""
    return float(np.mean([not all(rule(run[:look]) for look in rule.looks) for run in times]))


@pytest.mark.parametrize(("phi", "noise"), [(0.0, 0.0), (0.8, 0.0), (0.8, NOISE)])
@pytest.mark.parametrize("error", [0.01, 0.05])
def test_a_run_at_the_threshold_is_rarely_stopped(phi: float, noise: float, error: float) -> None:
    times = token_times(100, phi=phi, noise=noise)
    assert stopped(times, Early(10.0, error, TOKENS, noise)) <= error


@pytest.mark.parametrize("noise", [0.0, NOISE])
def test_a_run_of_half_the_speed_is_stopped(noise: float) -> None:
    assert stopped(token_times(200, phi=0.5, noise=noise, runs=500), Early(10.0, 0.01, TOKENS, noise)) >= 0.98


def test_without_blocks_or_noise_the_error_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule on single tokens, or one that ignores differences between runs, stops far more runs than stated."""
    assert stopped(token_times(100, phi=0.0, noise=NOISE), Early(10.0, 0.05, TOKENS)) > 0.1
    monkeypatch.setattr(early, "_spread_of_mean", lambda times: 0.0)
    monkeypatch.setattr(early, "LEAST_BLOCK", 1)
    monkeypatch.setattr(early, "BLOCKS", (6, TOKENS))
    assert stopped(token_times(100), Early(10.0, 0.05, TOKENS)) > 0.1


def test_looks_are_at_fixed_shares_of_the_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Early(10.0, 0.05, 400)
    assert rule.looks == [50, 100, 200] and Early(10.0, 0.05, 200).looks == [50, 100] and Early(10.0, 0.05, 80).looks == []
    slow = [1000.0] * 400
    assert [n for n in range(1, 401) if not rule(slow[:n])] == rule.looks
    assert all(Early(10.0, 0.05, 80)(slow[:n]) for n in range(1, 81))


@pytest.mark.parametrize(
    "wrong", [{"stop_below_tok_s": 0}, {"error": 0}, {"error": 0.5}, {"total_tokens": 0}, {"noise": -0.1}, {"noise": 1}]
)
def test_impossible_values_are_refused(wrong: dict[str, Any]) -> None:
    name = next(iter(wrong))
    with pytest.raises(HeadraceError, match=f"{name}="):
        Early(**{"stop_below_tok_s": 10.0, "error": 0.05, "total_tokens": 100, **wrong})
