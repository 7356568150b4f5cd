"""Panels: every study has a look of its own, also in grey."""

from __future__ import annotations

from harness.compare.pictures.panel import COLORS, look


def test_looks_differ_in_colour_and_symbol() -> None:
    looks = [look(i) for i in range(len(COLORS))]
    assert len({one.color for one in looks}) == len({one.symbol for one in looks}) == len(COLORS)
    assert look(len(COLORS)) == look(0)
