"""Bit plans and routing profiles made of random numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from engine import Checkpoint
from engine.plan.bits import BitsPlan, weights_of, widths
from engine.routing.profile import Profile

Make = Callable[..., Path]


def a_plan(source: Checkpoint, by: str, share: float = 0.5, low: int = 2, high: int = 4, seed: int = 0) -> BitsPlan:
    """A plan with random hot experts, layers, or projections of a layer."""
    weights = weights_of(source)
    layers, experts, projections = weights.shape
    shape = {"expert": (layers, experts, 1), "layer": (layers, 1, 1), "projection": (layers, 1, projections)}[by]
    worth = np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape) / np.prod(shape)
    worth = np.broadcast_to(worth, weights.shape)
    return BitsPlan(np.where(worth < share, widths(source, high), widths(source, low)), worth, weights)


def a_profile(source: Checkpoint, seed: int = 0) -> Profile:
    rng = np.random.default_rng(seed)
    shape = weights_of(source).shape[:2]
    return Profile(rng.permuted(np.arange(np.prod(shape)).reshape(shape), axis=1))
