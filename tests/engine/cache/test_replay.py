"""Traces replayed, and forced upon a model of random weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine import Knobs, load
from engine.__main__ import main
from engine.bench import shapes
from engine.bench.decoding.forced_routing import ForcedRouting
from engine.cache.replay import belady_hit_rate, hit_rate
from engine.routing.read import Trace, overlap, read_trace

Capture = pytest.CaptureFixture[str]
TINY = {
    **shapes.SHAPES["qwen3_30b_a3b"], "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 128,
    "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 4, "moe_intermediate_size": 64, "vocab_size": 256,
    "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


def routing(tokens: int, layers: int, top_k: int, experts: int) -> np.ndarray:
    """Expert ids with some locality: every token keeps about half of its predecessor's experts."""
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


def test_replay_is_what_a_cache_does() -> None:
    """Two experts a token that alternate: with two slots LRU never hits, with four it always does after the first round."""
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


def test_random_weights_compute_and_are_not_overwritten(tiny: Path, capsys: Capture) -> None:
    with load(tiny) as engine:
        logits = engine.logits([1, 2, 3])
    assert np.isfinite(logits).all() and 0.01 < logits.std() < 100
    assert main(["bench", "make", str(tiny), "--shape", "tiny"]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_forced_routing_is_the_traces(tiny: Path, tmp_path: Path) -> None:
    """Seen in the engine's own books: each expert is used as often as the trace says."""
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


def test_bench_decode_with_a_trace(tiny: Path, tmp_path: Path, capsys: Capture) -> None:
    file = str(write(tmp_path / "t.parquet", routing(40, 4, 4, 16)))
    command = ["bench", "decode", str(tiny), "--trace", file, "--resident", "--rounds", "2", "--tokens", "10",
               "--cached", "1", "0.5", "--windows", "1", "all"]  # fmt: skip
    assert main(command) == 2
    assert "--trace with windows needs --foresight" in capsys.readouterr().err
    assert main([*command, "--foresight", "0.6", "0.9"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["window"] for row in result["rows"]] == ["-", "-", "1", "all", "all, all predicted"]
    limited, unlimited = result["rows"][3:]
    assert unlimited["window_recall_by_pass"][0] == 1 > limited["window_recall_by_pass"][0]
    assert unlimited["passes_per_window"] <= 2 < limited["passes_per_window"] + 1
    assert limited["share_of_serial"][1] >= limited["share_of_overlapped"][1] > 0
    assert main(["bench", "decode", str(tiny), "--trace", file, "--rounds", "1", "--tokens", "4", "--cached", "0.5"]) == 0
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"][0]
    assert alone["share_of_resident"] is None and alone["decode_tok_s"][1] > 0
    assert main(["bench", "decode", str(tiny), "--trace", str(write(tmp_path / "u.parquet", routing(40, 3, 4, 16)))]) == 2
    assert "does not fit" in capsys.readouterr().err
