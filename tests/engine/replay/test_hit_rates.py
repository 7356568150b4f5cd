"""Tests of replay: hit rates of a trace under eviction policies, bounded by Belady's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from traces import routing, write_trace

from engine.__main__ import main
from engine.replay.hit_rates import belady_hit_rate, hit_rate
from engine.routing.read import Trace, overlap

Capture = pytest.CaptureFixture[str]


def test_replay_is_what_a_cache_does() -> None:
    """Two alternating sets of two experts: with two slots LRU never hits; with four it always hits after the first round."""
    experts = np.array([[[0, 1]], [[2, 3]]] * 10, np.int32)
    trace = Trace(Path("t"), experts, 0)
    assert hit_rate(trace, 8, 2, 1e-6) == 0 and belady_hit_rate(trace, 2) == 0
    assert hit_rate(trace, 8, 4, 1e-6) == belady_hit_rate(trace, 4) == pytest.approx(0.9)
    assert overlap(trace) == 0
    assert 0 < hit_rate(trace, 8, 3, 1e-6, pinned_share=0.34) <= 0.5  # one of four is pinned


@pytest.mark.parametrize("half_life", [1e-6, 4.0, 16.0, float("inf")])
@pytest.mark.parametrize("slots", [4, 8])
def test_belady_bounds_every_half_life(half_life: float, slots: int) -> None:
    trace = Trace(Path("t"), routing(200, 2, 4, 16), 10)
    assert 0 < hit_rate(trace, 16, slots, half_life) <= belady_hit_rate(trace, slots)


def test_replay_on_the_command_line(tmp_path: Path, capsys: Capture) -> None:
    file = str(write_trace(tmp_path / "t.parquet", routing(50, 2, 4, 16)))
    assert main(["replay", file, "--slots", "4", "8", "--half-life", "0", "inf"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["policy"] for row in result["rows"]] == [
        "LRU (half-life 0)",
        "LFU (half-life inf)",
        "Belady (knows the future)",
    ]
    assert main(["replay", file, "--slots", "3"]) == 2
    assert "--slots 3 is outside 4 .. 16" in capsys.readouterr().err
