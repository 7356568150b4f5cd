"""Tests of `bench bits`: plans are compared at equal bytes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from engine import Knobs
from engine.bench.quality import bits
from engine.measure.judge import Judge
from engine.routing.profile import Profile


def test_plans_are_compared_at_equal_bytes(
    checkpoint: Callable[..., Path], judge: Judge, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = Profile(np.random.default_rng(0).integers(0, 100, (3, 16)))
    monkeypatch.setattr(bits, "routing_profile", lambda source: profile)
    knobs = Knobs(expert_bits=4, cold_bits=2)
    result = bits.bench_bits(checkpoint("deepseek_v3", None, True), knobs, judge, average_bits=[3], draws=2)
    json.dumps(result)
    stored, low, uniform, high, *mixed = result["rows"]
    assert stored["kl"] == [0.0] and stored["average_bits"] == 16
    assert [row["chosen_by"] for row in (low, uniform, high)] == ["uniform 2", "uniform 3", "uniform 4"]
    assert low["kl"] > uniform["kl"] > high["kl"]
    assert [row["chosen_by"] for row in mixed] == ["random", "frequency"]
    assert {row["gb"] for row in mixed} == {uniform["gb"]}
    assert all(kl > 0 for row in (uniform, *mixed) for kl in row["kl"])
    assert len(mixed[0]["kl"]) == 2 and len(set(mixed[0]["kl"])) == 2
    assert result["eval_fingerprint"] == judge.fingerprint
    assert len(capsys.readouterr().out.splitlines()) == 2 + 6, "a Markdown table with a row for each row"


def test_perplexity_of_equal_logits_is_the_vocabulary() -> None:
    logits = bits.log_softmax(np.zeros((5, 32), np.float32))
    assert np.exp(logits).sum(axis=-1) == pytest.approx(1)
    assert bits.perplexity([logits, logits], [np.arange(5), np.arange(5)]) == pytest.approx(32)
