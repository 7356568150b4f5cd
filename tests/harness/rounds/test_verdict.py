"""Verdict: a round is kept if its gain in hypervolume exceeds twice its noise."""

from __future__ import annotations

from typing import Any

from synthetic import frame, row

from harness.rounds.verdict import verdict


def test_a_round_is_kept_for_more_than_its_noise() -> None:
    values = {"cache_gb": 0.01, "expert_bits": 4}

    def confirmed(trial: int, speed: float, memory: float, spread: float = 0.02) -> list[dict[str, Any]]:
        factors = (1.3, 1 - spread, 1, 1 + spread)  # the first run is biased upwards by selection
        return [
            row(trial, values, (speed * f, memory, 4), run=i, origin="confirm" if i else "sampler")
            for i, f in enumerate(factors)
        ]

    before = confirmed(1, 10, 1) + confirmed(2, 20, 2)
    better = verdict(frame(before), frame([*before, *confirmed(3, 30, 2)]))
    assert better.kept
    assert better.after > better.before
    assert "kept" in better.evidence
    assert not verdict(frame(before), frame([*before, *confirmed(3, 20.1, 2)])).kept
    noisy = confirmed(1, 10, 1, spread=0.4) + confirmed(2, 20, 2, spread=0.4)
    assert not verdict(frame(noisy), frame([*noisy, *confirmed(3, 24, 2, spread=0.4)])).kept
    assert not verdict(frame(before), frame([*before, row(3, values, (60, 2, 4))])).kept, "not confirmed"
    assert not verdict(frame(before), frame(before)).kept
    assert verdict(frame([]), frame(before)).kept
