"""Prefetch: predicted experts are read ahead, and each prefetch knob changes recall as documented."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import CONFIGS

from engine import Judge, Knobs, Measurement, Protocol, footprint, load
from engine.measure.judge import Text

TEXT = "The headrace brings the water to the wheel. When it is clean, the stones grind from morning until eight. "
JUDGE = Judge((Text("a", "prose", TEXT[:40], TEXT[:30]), Text("b", "prose", TEXT[::-1][:40], TEXT[30:60])))


@pytest.fixture(scope="module")
def path(checkpoint: Callable[..., Path]) -> Path:
    return checkpoint("deepseek_v3", None, True)


@pytest.fixture(scope="module")
def quarter(path: Path) -> float:
    """The size of a cache for a little more than a third of the experts."""
    f = footprint(path)
    return f.one_token_gb + 0.2 * (f.all_experts_gb - f.one_token_gb)


def measured(path: Path, protocol: Protocol | None = None, **knobs: Any) -> Measurement:
    with load(path, Knobs(**knobs)) as engine:
        return engine.measure(JUDGE, protocol)


def test_prefetch_reads_experts_ahead(path: Path, quarter: float) -> None:
    off, on = measured(path, cache_gb=quarter), measured(path, cache_gb=quarter, prefetch="stale_gate")
    assert off.prefetch_issued == 0 and off.prefetch_recall is None
    assert 0 < on.prefetch_useful < on.prefetch_issued
    assert on.misses < off.misses and on.bytes_read > off.bytes_read
    expert = 3 * 64 * 32 * 2
    assert on.prefetch_precision == on.prefetch_useful / on.prefetch_issued
    assert on.prefetch_wasted_bytes == (on.prefetch_issued - on.prefetch_useful) * expert
    assert 0 < on.prefetch_exact_set < on.prefetch_recall < 1
    assert 0 < on.prefetch_coverage < 1


def test_hidden_prefetch_time_grows_with_the_width(path: Path, quarter: float) -> None:
    """On a slow disk, reads run while earlier layers compute or wait."""
    slow = {"cache_gb": quarter, "ssd_gbps": 0.002, "prefetch": "stale_gate"}
    assert measured(path, **slow).prefetch_hidden_ms > measured(path, **slow, prefetch_width=0.25).prefetch_hidden_ms > 0


def test_a_wider_prefetch_recalls_more(path: Path, quarter: float) -> None:
    recall = [
        measured(path, cache_gb=quarter, prefetch="stale_gate", prefetch_width=w).prefetch_recall for w in (0.5, 1, 1.5, 4)
    ]
    assert recall == sorted(recall) and recall[-1] == 1  # four times top-k are all 16 experts


def test_a_deeper_prefetch_predicts_more_layers(path: Path, quarter: float) -> None:
    """Both earlier layers predict the last of three; the farther one predicts some other experts."""
    near, far = (measured(path, cache_gb=quarter, prefetch="stale_gate", prefetch_depth=d) for d in (1, 2))
    assert far.prefetch_recall > near.prefetch_recall and far.prefetch_issued != near.prefetch_issued


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_without_staleness_every_prediction_is_exact(checkpoint: Callable[..., Path], family: str) -> None:
    """The control: a router run on its own layer's input predicts the choice exactly."""
    path, few = checkpoint(family, 4), Protocol(warm_up_tokens=0, timed_tokens=12, score=False)
    result = measured(path, few, cache_gb=footprint(path).one_token_gb, prefetch="stale_gate", prefetch_depth=0)
    assert (result.prefetch_recall, result.prefetch_exact_set, result.prefetch_issued) == (1, 1, 0)
