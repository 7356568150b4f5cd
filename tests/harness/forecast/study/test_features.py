"""Tests of features: what is resident needs nothing, caches, widths and disks are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError
from engine.knobs import Knobs
from harness.forecast.study import routing as routings
from harness.forecast.study.features import Arithmetic, key
from harness.forecast.study.routing import routing

KIMI_MINI = Path(__file__).resolve().parents[4] / "experiments" / "kimi_mini" / "checkpoint"


@pytest.fixture(scope="module")
def found() -> Arithmetic:
    return Arithmetic(routing(Checkpoint.open(KIMI_MINI)), 0.1)


def test_everything_resident_reads_nothing(found: Arithmetic) -> None:
    resident = found.features({})
    assert (resident.io_ms, resident.streamed, resident.missed, resident.two_widths) == (0, 0, 0, 0)
    assert found.features({"cold_bits": 2}).two_widths == 1


def test_smaller_caches_read_more(found: Arithmetic) -> None:
    small, large = (found.features({"cache_gb": gb}) for gb in (0.01, 0.03))
    assert small.io_ms > large.io_ms > 0 and small.missed >= large.missed > 0 and small.streamed == large.streamed == 1
    assert small.requantized == 0 and small.io_spread == 0


def test_a_read_limit_comes_before_the_disk(found: Arithmetic) -> None:
    free, limited = (found.features({"cache_gb": 0.01, **more}).io_ms for more in ({}, {"ssd_gbps": 0.05}))
    assert limited == pytest.approx(2 * free)


def test_other_widths_are_quantized_again(found: Arithmetic) -> None:
    lossy = found.features({"cache_gb": 0.004, "expert_bits": 4})
    assert lossy.requantized > 0 and lossy.two_widths == 0
    assert found.features({"cache_gb": 0.004, "expert_bits": 4, "top_k": 2}).requantized < lossy.requantized


def test_some_layers_stand_for_all(found: Arithmetic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routings, "MANY", 2)
    few = Arithmetic(routing(Checkpoint.open(KIMI_MINI)), 0.1)
    monkeypatch.setattr(routings, "FEW", 3)
    three = Arithmetic(routing(Checkpoint.open(KIMI_MINI)), 0.1).features({"cache_gb": 0.01})
    assert few.features({"cache_gb": 0.01}) == found.features({"cache_gb": 0.01})
    assert three.io_ms == pytest.approx(found.features({"cache_gb": 0.01}).io_ms, rel=0.3)


def test_a_setting_is_replayed_once(found: Arithmetic) -> None:
    values: dict[str, Any] = {"cache_gb": 0.02}
    assert found.features(values) is found.features(values)
    assert key(Knobs.from_mapping(values)) in found.known and key(Knobs()) != key(Knobs.from_mapping(values))
    with pytest.raises(HeadraceError, match="below one token's experts"):
        found.features({"cache_gb": 1e-6})
