"""Tests of `bench lossy`: a row per setting, and the effect of every knob."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.bench.quality import lossy
from engine.measure.judge import Judge


def test_settings_start_without_a_knob() -> None:
    found = lossy.settings(4)
    assert found[0] == {} and found[-1] == {"cold_drop": 0.5, "cache_prior": 0.3}
    assert [one["top_k"] for one in found if "top_k" in one] == [3, 2]
    assert all(len(one) == 1 for one in found[1:-1])


def test_every_knob_has_its_effect(
    checkpoint: Callable[..., Path], judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [{}, {"cold_drop": 1.0}, {"cache_prior": 1.0}, {"top_k": 2}, {"resident_bits": 3}]
    monkeypatch.setattr(lossy, "settings", lambda top_k: settings)
    result = lossy.bench_lossy(checkpoint("deepseek_v3", None, True), {"prefill_chunk": 32}, judge)
    json.dumps(result)
    none, drop, prior, narrow, bits = result["rows"]
    assert result["knobs"]["prefill_chunk"] == 32 and result["cached_share"] == pytest.approx(0.25)
    assert result["eval_fingerprint"] == judge.fingerprint
    assert drop["dropped_share"] > 0 == none["dropped_share"] and prior["swapped_share"] > 0 == none["swapped_share"]
    assert max(r["read_mb_per_token"] for r in (drop, prior, narrow)) < none["read_mb_per_token"]
    assert none["nll_more"] == 0 and all(r["nll_more"] != 0 for r in (drop, prior, narrow, bits))
    assert "cold_drop=1" in capsys.readouterr().out
