"""Tests of `bench hits`: no expert is missing while it measures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine import Knobs
from engine.bench.decoding import hits


def test_no_expert_is_missing(checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hits, "TOKENS", 5)
    result = hits.bench_hits(checkpoint("deepseek_v3", None, True), Knobs(cache_gb=1), rounds=2)
    assert result["misses"] == 0 and result["us_per_layer"][1] > 0
    assert (result["layers"], result["top_k"]) == (3, 4)
