"""Soak: medians of the second and of the last quarter."""

from __future__ import annotations

from types import SimpleNamespace

from engine.bench.serving.soak import state, trend


def test_trend_leaves_out_the_first_quarter():
    samples = [{"s": float(n), "process_mb": float(n)} for n in range(8)]
    found = trend(samples, {"200": 3})
    assert found == {"samples": 8, "early": {"process_mb": 2.5}, "late": {"process_mb": 6.5}}
    assert trend(samples[:1], {})["late"] == {"process_mb": 0.0}
    assert trend([], {}) == {"samples": 0, "early": {}, "late": {}}


def test_state_of_this_process():
    found = state(SimpleNamespace(cache=SimpleNamespace(nbytes=2_000_000)))
    assert found["prompt_cache_mb"] == 2 and found["descriptors"] > 2 and found["threads"] >= 1 and found["process_mb"] > 1
