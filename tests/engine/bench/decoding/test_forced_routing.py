"""Forced routing: the experts of a trace, and limited predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine import Knobs, load
from engine.__main__ import main
from engine.bench import shapes
from engine.bench.decoding.forced_routing import ForcedRouting
from engine.routing.read import read_trace

TINY = {
    **shapes.SHAPES["qwen3_30b_a3b"], "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 128,
    "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "vocab_size": 256,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


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


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(shapes.SHAPES, "tiny", TINY)
    assert main(["bench", "make", str(tmp_path / "tiny"), "--shape", "tiny"]) == 0
    return tmp_path / "tiny"


def test_forced_routing_is_the_traces(tiny: Path, tmp_path: Path) -> None:
    """The engine counts each expert as often as the trace contains it."""
    experts = routing(60, 4, 4, 16)
    trace = read_trace(write(tmp_path / "t.parquet", experts))
    sizes = {"cache_gb": 16 * 4 * 0.5 * 14336 / 1e9}
    for knobs in (Knobs(**sizes), Knobs(**sizes, sync_window=0)):
        with load(tiny, knobs) as engine:
            forced = ForcedRouting(engine, trace, [0.6, 0.8] if engine.windows else None)
            _, stats = forced.decode(30)
            assert stats.tokens == 30 and 0.3 < stats.hit_rate < 0.9
            counts = np.stack([np.bincount(experts[:46, n].reshape(-1), minlength=16) for n in range(4)])
            assert np.array_equal(engine.uses, counts)
            if engine.windows:
                assert 0.5 < stats.window_prediction_recall < 0.9 and stats.passes > stats.windows


def test_a_trace_with_fewer_ranks_is_completed(tiny: Path, tmp_path: Path) -> None:
    experts = routing(40, 4, 3, 16)
    with load(tiny) as engine:
        forced = ForcedRouting(engine, read_trace(write(tmp_path / "t.parquet", experts)), None)
    assert np.array_equal(forced._ids[..., :3], experts)
    assert (np.diff(np.sort(forced._ids.astype(int), axis=-1), axis=-1) > 0).all()
