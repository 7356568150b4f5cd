"""Reasons: one for each knob that no derived space has."""

from __future__ import annotations

from engine import Knobs
from harness.space.reasons import NEVER, not_packed, on_cpu


def test_reasons_name_knobs_and_facts() -> None:
    assert set(NEVER) < set(Knobs.names()) and all(NEVER.values())
    assert on_cpu("cpu") != on_cpu(None) and "not known" in on_cpu(None)
    assert not_packed("m", 4).startswith("m is not packed, with experts of 4 bits: ")
    assert not_packed("m", None).startswith("m is not packed: ")
