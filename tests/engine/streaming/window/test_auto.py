"""Auto window: the faster size is used, a trial of the slower one costs little, and a change is found."""

from __future__ import annotations

import numpy as np
import pytest

from engine.streaming.window.auto import AutoWindow

MOST = 8


def decode(ms: np.ndarray, changing: float = 0.2) -> tuple[list[int], float]:
    """The sizes that are chosen and the time of all tokens. `ms` [2, tokens] has the times of a token with size 1 and MOST;
    the first token after a change takes longer by the share `changing`."""
    now, sizes = 0.0, [1]
    auto = AutoWindow(MOST, clock=lambda: now)
    for times in ms.T:
        sizes.append(auto.size(True))
        now += times[int(sizes[-1] == MOST)] * (1 + changing * (sizes[-1] != sizes[-2]))
    return sizes[1:], now


def token_ms(ratio: float, tokens: int, noise: float, seed: int) -> np.ndarray:
    """Times of 1 ms and `ratio` ms with a relative deviation of `noise`, and a slow drift that both sizes share."""
    rng = np.random.default_rng(seed)
    spread = np.sqrt(np.log1p(noise**2))
    drift = np.convolve(rng.normal(size=tokens), 0.02 * 0.98 ** np.arange(300))[:tokens]  # 10 % over about 50 tokens
    each = rng.lognormal(-(spread**2) / 2, spread, (2, tokens))
    return np.array([[1.0], [ratio]]) * each * np.exp(drift)


def test_the_faster_size_is_used_and_a_change_is_found() -> None:
    ms = np.full((2, 512), 3.0)
    ms[1, :256] = 2.0
    ms[1, 256:] = 5.0
    sizes, _ = decode(ms)
    assert sizes[12:72] == [MOST] * 60 and sizes[352:].count(1) > 150


@pytest.mark.parametrize("ratio", [1 / 2, 2 / 3, 3 / 2, 2])
def test_the_cost_of_choosing(ratio: float) -> None:
    """Over 1,024 tokens the loss against the better size is at most 3 %, and at most 5 % where token times vary by 30 %."""
    for noise, most in ((0.05, 0.03), (0.3, 0.05)):
        losses = []
        for seed in range(4):
            ms = token_ms(ratio, 1024, noise, seed)
            losses.append(decode(ms)[1] / ms.sum(axis=1).min() - 1)
        assert np.mean(losses) < most, (noise, losses)


@pytest.mark.parametrize("cold_tokens", [4, 12])
@pytest.mark.parametrize("ratio", [0.4, 0.8, 1.25, 2.5])
def test_the_cost_of_choosing_while_the_cache_fills(ratio: float, cold_tokens: int) -> None:
    """The first tokens take up to five times as long with either size, and each less than the one before: the loss over
    1,024 tokens is at most 10 %."""
    losses = []
    for seed in range(6):
        ms = token_ms(ratio, 1024, 0.05, seed) * (1 + 4 * np.exp(-np.arange(1024) / cold_tokens))
        losses.append(decode(ms)[1] / ms.sum(axis=1).min() - 1)
    assert np.mean(losses) < 0.1, losses


def test_trials_of_a_much_slower_size_become_rare() -> None:
    sizes, _ = decode(np.array([[1.0], [4.0]]) * np.ones((1, 2048)))
    tried = np.flatnonzero(np.diff([1, *sizes]) > 0)
    assert sizes.count(MOST) <= 3 * len(tried) and len(tried) <= 8
    assert np.diff(tried)[-1] > AutoWindow.LONGEST


def test_one_slow_token_does_not_settle_the_choice() -> None:
    ms = np.array([[3.0], [2.0]]) * np.ones((1, 400))
    ms[1, 6:9] = 30.0  # a stall in the first trial
    sizes, _ = decode(ms)
    assert sizes[200:300].count(MOST) > 90


def test_a_slow_first_token_does_not_prolong_the_first_trial() -> None:
    ms = np.array([[1.0], [2.5]]) * np.ones((1, 64))
    ms[0, 1] = 6.0  # the first token that is counted
    sizes, _ = decode(ms)
    assert sizes.count(MOST) <= 6


@pytest.mark.parametrize("pause", [10.0, 1000.0])
@pytest.mark.parametrize("ratio", [0.4, 2.5])
def test_a_pause_between_two_tokens_is_not_counted(ratio: float, pause: float) -> None:
    """As in a benchmark whose contenders take turns, or in a chat that goes on without a new prompt to compute."""
    ms = token_ms(ratio, 144, 0.1, 0)
    slower = MOST if ratio > 1 else 1
    usual = decode(ms)[0].count(slower)
    ms[:, [47, 95]] += pause
    assert decode(ms)[0].count(slower) <= usual + 3


def test_times_that_stay_long_are_counted() -> None:
    ms = np.array([[1.0], [2.0]]) * np.ones((1, 400))
    ms[0, 200:] = 20.0
    sizes, _ = decode(ms)
    assert sizes[340:].count(MOST) > 50


def test_auto_counts_decoding_only() -> None:
    now = 0.0
    auto = AutoWindow(MOST, clock=lambda: now)
    for token in range(40):
        now += {1: 3.0, MOST: 2.0}[auto.size(True)]
        if token % 3 == 0:
            auto.size(False)
            now += 1000.0
    assert auto.size(True) == MOST
