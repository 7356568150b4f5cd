"""Contenders take turns in both orders."""

from __future__ import annotations

import pytest

from engine.bench.contender import Contender, in_turns, ratios


def test_arms_take_turns_in_both_orders() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    arms = [Contender("a", lambda: run("a")), Contender("b", lambda: run("b"))]
    in_turns(arms, 3)
    assert "".join(order) == "abbaab"
    assert ratios(arms[0], arms[1]) == pytest.approx((5 / 6, 2 / 3, 13 / 12))  # of 1/2, 4/3 and 5/6
