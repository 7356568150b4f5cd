"""Tests of contenders: order of turns, medians and ratios."""

from __future__ import annotations

import pytest

from engine.bench.contender import Contender, in_turns, ratios, spread


def test_contenders_take_turns_in_both_orders() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    contenders = [Contender("a", lambda: run("a")), Contender("b", lambda: run("b"))]
    in_turns(contenders, 3, before=lambda: order.append("|"))
    assert "".join(order) == "|ab|ba|ab"
    assert [c.figures for c in contenders] == [[2, 6, 8], [3, 5, 9]]


def test_ratios_are_of_the_same_round() -> None:
    a, b = Contender("a", float, [1, 4, 5]), Contender("b", float, [2, 3, 6])
    assert ratios(a, b) == pytest.approx((5 / 6, 2 / 3, 13 / 12))  # of 1/2, 4/3 and 5/6


def test_median_and_quartiles() -> None:
    contender = Contender("a", float, [1, 2, 3, 4, 100])
    assert contender.median == 3 and contender.quartiles == (2, 4)
    assert spread(contender.figures) == (2, 3, 4)
