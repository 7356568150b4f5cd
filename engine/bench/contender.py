"""Contenders: what a benchmark compares, measured in turns, with medians, quartiles and ratios."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Contender:
    """One side of a comparison. `run` makes one turn and returns its figure."""

    name: str
    run: Callable[[], float]
    figures: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.quantile(self.figures, [0.25, 0.75])
        return float(low), float(high)


def in_turns(contenders: list[Contender], rounds: int, before: Callable[[], None] = lambda: None) -> None:
    """Run `rounds` turns of every contender. Every second round is in reverse order, so that a drift affects all alike.
    `before` is called before each round."""
    for number in range(rounds):
        before()
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            contender.figures.append(contender.run())


def spread(figures: list[float] | np.ndarray) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = np.quantile(figures, [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def ratios(contender: Contender, base: Contender) -> tuple[float, float, float]:
    """Median, lower and upper quartile of the contender's figures over the base's of the same round."""
    low, middle, high = spread([a / b for a, b in zip(contender.figures, base.figures, strict=True)])
    return middle, low, high
