"""Timed pass: the timed part is the same with and without scoring, and lossless knobs do not change it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import (
    Judge,
    JudgeError,
    Knobs,
    Measurement,
    Protocol,
    footprint,
    load,
)
from engine.measure.judge import Text
from engine.measure.timed_pass import token_nll

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge(
    (Text("a", "prose", TEXT, TEXT[:31]), Text("b", "prose", TEXT[::-1], TEXT[30:51]), Text("c", "x", "abc", "defgh"))
)
QUALITY = ("perplexity", "perplexity_se", "nll", "scored_tokens")


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.fixture(scope="module")
def third(path: Path) -> float:
    f = footprint(path)
    return f.one_token_gb + 0.2 * (f.all_experts_gb - f.one_token_gb)


@pytest.fixture(scope="module")
def whole(path: Path, third: float) -> Measurement:
    """The measurement with the default protocol."""
    return measured(path, cache_gb=third)


def measured(path: Path, protocol: Protocol | None = None, keep_going: Any = None, **knobs: Any) -> Measurement:
    with load(path, Knobs(**knobs)) as engine:
        return engine.measure(JUDGE, protocol, keep_going)


@pytest.mark.parametrize("timed", [30, 41])  # the end of the first text, and within the second
def test_the_timed_part_is_the_same_with_and_without_a_score(
    path: Path, third: float, whole: Measurement, timed: int
) -> None:
    scored = measured(path, Protocol(timed_tokens=timed), cache_gb=third)
    alone = measured(path, Protocol(timed_tokens=timed, score=False), cache_gb=third)
    for m in (scored, alone):
        assert m.decode_tokens == len(m.token_ms) == timed
        assert m.decode_tok_s == pytest.approx(1e3 * timed / sum(m.token_ms))
        assert not m.ended_early
    for name in ("timed_nll", "hits", "misses", "reads", "bytes_read"):
        assert getattr(scored, name) == getattr(alone, name), name
    assert [getattr(alone, name) for name in QUALITY] == [None] * 4
    assert [getattr(scored, name) for name in QUALITY] == [getattr(whole, name) for name in QUALITY]
    assert whole.decode_tokens == 30 + 20 + 4 and whole.timed_nll == whole.nll != scored.timed_nll


def test_the_score_is_the_mean_over_all_passes(path: Path) -> None:
    """The default protocol: nll is the mean over all passes, perplexity its exp."""
    with load(path) as engine:
        passes = [token_nll(*step) for text in engine.teacher_forced(JUDGE) for part in text for step in part]
        m = engine.measure(JUDGE)
    assert m.nll == np.concatenate(passes).mean() and m.perplexity == np.exp(m.nll)
    assert m.ttft_ms > 0 and m.scored_tokens == sum(len(t.prompt + t.continuation) - 1 for t in JUDGE.texts)


def test_the_parts_of_a_measurement_are_its_own(path: Path, third: float) -> None:
    with load(path, Knobs(cache_gb=third)) as engine:
        first = engine.measure(JUDGE, Protocol(timed_tokens=41))
        list(engine.teacher_forced(JUDGE))  # warms up once more
        second = engine.measure(JUDGE, Protocol(timed_tokens=41, warm_up_tokens=0))
    for m in (first, second):
        assert m.timed_s == pytest.approx(sum(m.token_ms) / 1e3)
        assert m.prefix_s >= m.ttft_ms / 1e3  # of two texts, whose median is below their sum
    assert first.fill_s > 10 * second.fill_s


def test_lossless_knobs_do_not_change_the_timed_part(path: Path, third: float) -> None:
    protocol = Protocol(timed_tokens=24, score=False)
    expected = measured(path, protocol).timed_nll
    for knobs in ({"prefetch": "stale_gate"}, {"io_mode": "direct", "evict_half_life": 0.1}, {"sync_window": 3}):
        assert measured(path, protocol, cache_gb=third, **knobs).timed_nll == expected, knobs
    assert measured(path, protocol, cache_gb=third, expert_bits=4).timed_nll != expected


def test_keep_going_ends_a_measurement(path: Path, third: float) -> None:
    seen: list[int] = []

    def keep_going(token_ms: list[float]) -> bool:
        seen.append(len(token_ms))
        return len(token_ms) < 9

    m = measured(path, Protocol(timed_tokens=20), keep_going, cache_gb=third)
    assert m.ended_early and m.decode_tokens == 9 and seen == list(range(1, 10))
    assert m.perplexity is None and m.timed_nll is not None
    assert m.decode_tok_s == pytest.approx(9e3 / sum(m.token_ms))


def test_more_tokens_than_there_are_cannot_be_timed(path: Path) -> None:
    with pytest.raises(JudgeError, match="timed_tokens=55 is above the 54 tokens of all continuations"):
        measured(path, Protocol(timed_tokens=55))
