"""Bits: shares of widths in a plan, the stored width, and the bars of recommended settings."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.compare.pictures.bits import bits, shares, stored_bits
from harness.compare.sides import Side

NONE = dict.fromkeys(("bits_plan", "expert_bits", "cold_bits", "hot_share"))


@pytest.mark.parametrize(
    ("knobs", "expected"),
    [
        ({}, [("16", 1.0)]),
        ({"expert_bits": 4.0}, [("4", 1.0)]),
        ({"expert_bits": 8, "cold_bits": 2, "hot_share": 0.4}, [("8", 0.4), ("2", 0.6)]),
        ({"cold_bits": 3, "hot_share": np.nan}, [("16", 0.25), ("3", 0.75)]),
        ({"bits_plan": "plan.json"}, [("saved plan, 3.5 on average", 1.0)]),
    ],
)
def test_shares_of_widths(knobs: dict[str, Any], expected: list[tuple[str, float]]) -> None:
    assert shares({**NONE, **knobs}, 16.0, 3.5) == [(name, pytest.approx(share)) for name, share in expected]


def test_bars_fill_each_row(sides: list[Side]) -> None:
    cloud, plans = bits(sides).panels
    bars = [s for s in plans.series if s.x2 is not None]
    sums = np.zeros(len(plans.rows))
    for s in bars:
        assert s.x2 is not None
        np.add.at(sums, s.y.astype(int), s.x2 - s.x)
    assert sums == pytest.approx(1) and plans.rows[0].startswith("A: ")
    assert all(len(s.x) == 0 for s in cloud.series) and stored_bits(sides[0]) is None  # the rows have no average bits
    with pytest.raises(ValueError, match="no figure of quality"):
        bits(sides, "decode_tok_s")
