"""Ahead: the predictions that a trace holds beside the choices, for replays of settings with `prefetch=stale_gate`.

A prediction is the choice of a later layer's router on this layer's input, for a pass of one token. A trace may hold several
for each layer: of layers at several distances, and of several numbers of experts.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import HeadraceError
from engine.knobs import Knobs
from engine.model.routers import Router, router_of

COLUMN = re.compile(r"predicted_(\d+)_(\d+)")


@dataclass(frozen=True)
class Ahead:
    """The predictions of a trace: each layer's for the layers `distances` further on, of each of `numbers` experts."""

    distances: tuple[int, ...]
    numbers: tuple[int, ...]


def column_of(distance: int, number: int) -> str:
    """The trace's column of predictions of `number` experts for the layer `distance` layers further on."""
    return f"predicted_{distance}_{number}"


def ahead_for(depth: int, widths: Iterable[float], top_k: int) -> Ahead:
    """What replays with up to `depth` layers of prefetch need, at each of these multiples of `top_k`."""
    return Ahead(tuple(range(1, depth + 1)), tuple(sorted({experts_predicted(width, top_k) for width in widths})))


def experts_predicted(width: float, top_k: int) -> int:
    """The number of experts that `prefetch_width` stands for."""
    return math.ceil(width * top_k)


def ahead_of_run(knobs: Knobs, partial: Sequence[int], top_k: int) -> Ahead | None:
    """What a run itself predicts, whose layers `partial` may miss an expert; None without prefetch."""
    if knobs.prefetch == "off":
        return None
    pairs = itertools.chain.from_iterable(
        ((a, b) for b in partial[i + 1 : i + 1 + knobs.prefetch_depth]) for i, a in enumerate(partial)
    )
    return Ahead(tuple(sorted({b - a for a, b in pairs})), (experts_predicted(knobs.prefetch_width, top_k),))


def routers_ahead(
    modules: dict[str, Any], checkpoint: Checkpoint, switches: Sequence[str], ahead: Ahead | None
) -> list[list[tuple[str, Router]]]:
    """Each layer's predictors, with the names of their columns. Raises `HeadraceError` if a router cannot be run ahead."""
    found: list[list[tuple[str, Router]]] = [[] for _ in switches]
    if ahead is None:
        return found
    for distance, number in itertools.product(ahead.distances, ahead.numbers):
        for of in range(distance, len(switches)):
            owner, _, name = switches[of].rpartition(".")
            layer = checkpoint.layers[of]
            router = router_of(modules[owner], name, checkpoint.top_k, number, layer) if number <= layer.experts else None
            if router is None:
                raise HeadraceError(
                    f"the router of {type(modules[owner]).__name__} cannot choose {number} of {layer.experts} experts ahead "
                    "of time; record the trace without predictions"
                )
            found[of - distance].append((column_of(distance, number), router))
    return found
