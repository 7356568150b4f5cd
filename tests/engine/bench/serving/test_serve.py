"""bench serve: equal texts of both contenders, figures of several clients, and fewer reads in a second turn."""

from __future__ import annotations

import json

import pytest

from engine import footprint
from engine.bench.serving import serve
from engine.errors import HeadraceError
from engine.knobs import Knobs
from engine.measure.judge import Judge
from engine.system.shipped import EVALUATION_TEXTS, KIMI_MINI


def test_figures_of_a_run(checkpoint, monkeypatch):
    monkeypatch.setattr(serve, "PROMPT_CHARACTERS", 20)
    monkeypatch.setattr(serve, "FIRST_TURN", 120)
    monkeypatch.setattr(serve, "ANSWER", 2)
    monkeypatch.setattr(serve, "CLIENTS", (1, 2))
    options = {"rounds": 2, "tokens": 4, "parallel": 2, "minutes": 0.01}
    knobs = Knobs(cache_gb=footprint(checkpoint("qwen3_moe")).one_token_gb, prefill_chunk=32)
    found = serve.bench_serve(checkpoint("qwen3_moe"), knobs, Judge.load(EVALUATION_TEXTS), **options)
    json.dumps(found)
    assert found["same_text"] == 1 and found["share"] > 0 and len(found["share_quartiles"]) == 2
    assert set(found["clients"]) == {"1", "2"} and all(f["tok_s"] > 0 for f in found["clients"].values())
    turns = found["second_turn"]
    assert turns["first_turn_tokens"] >= 120 and 0 < turns["second_turn_bytes"] < turns["first_turn_bytes"]
    assert turns["second_turn_cached_tokens"] >= 119
    assert found["soak"]["counts"] and "0" not in found["soak"]["counts"]


def test_one_token_has_no_rate():
    with pytest.raises(HeadraceError, match="--tokens 1 is below 2"):
        serve.bench_serve(KIMI_MINI, Knobs(), Judge.load(EVALUATION_TEXTS), rounds=1, tokens=1, parallel=1, minutes=0)
