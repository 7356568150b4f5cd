"""Replay of traces: hit rates equal those of a cache, and Belady bounds them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine.__main__ import main
from engine.cache.replay import belady_hit_rate, hit_rate
from engine.routing.read import Trace, overlap

Capture = pytest.CaptureFixture[str]


def routing(tokens: int, layers: int, top_k: int, experts: int) -> np.ndarray:
    """Expert ids with locality: every token repeats about half of the previous token's."""
    rng = np.random.default_rng(1)
    out = np.empty((tokens, layers, top_k), np.int32)
    for layer in range(layers):
        current = rng.permutation(experts)[:top_k]
        for token in range(tokens):
            if token % 2:
                current = rng.permutation(experts)[:top_k]
            out[token, layer] = current
    return out


def write(path: Path, experts: np.ndarray, prefilled: int = 0) -> Path:
    token, layer, rank = (a.reshape(-1) for a in np.indices(experts.shape))
    phase = np.where(token < prefilled, "prefill", "decode")
    columns = {"token": token, "phase": phase, "layer": layer, "rank": rank, "expert": experts.reshape(-1)}
    pd.DataFrame(columns).astype({"token": "int32", "expert": "int16"}).to_parquet(path)
    return path


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
    file = str(write(tmp_path / "t.parquet", routing(50, 2, 4, 16)))
    assert main(["replay", file, "--slots", "4", "8", "--half-life", "0", "inf"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["policy"] for row in result["rows"]] == [
        "LRU (half-life 0)",
        "LFU (half-life inf)",
        "Belady (knows the future)",
    ]
    assert main(["replay", file, "--slots", "3"]) == 2
    assert "--slots 3 is outside 4 .. 16" in capsys.readouterr().err
