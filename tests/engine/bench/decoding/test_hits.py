"""Tests of `bench hits`: no expert is missing while it measures, or as many as said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import KnobError, Knobs
from engine.bench.decoding import hits


def test_no_expert_is_missing(checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hits, "TOKENS", 5)
    result = hits.bench_hits(checkpoint("deepseek_v3", None, True), Knobs(cache_gb=1), rounds=2)
    assert result["misses"] == 0 and result["us_per_layer"][1] > 0
    assert (result["layers"], result["top_k"]) == (3, 4)


def test_missing_experts(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hits, "TOKENS", 5)
    model = checkpoint("deepseek_v3", None, True)
    assert hits.bench_hits(model, Knobs(cache_gb=1), rounds=1, misses=2)["misses"] == 2
    assert "2 misses, reads aside" in capsys.readouterr().out
    with pytest.raises(KnobError, match=r"bench hits: .*misses=9 is not between 0 and top_k=4"):
        hits.bench_hits(model, Knobs(cache_gb=1), rounds=1, misses=9)
