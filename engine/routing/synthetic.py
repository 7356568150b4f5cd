"""Synthetic routing: expert choices with the locality of a recorded trace, for shapes that have no trace.

Each layer chooses the top-k experts of a score that is a sum of independent normal parts:

- `popularity`: constant for an expert, so some experts are always used more than others.
- `topic`: changes over `topic_tokens` tokens, so a working set drifts with the text.
- `phrase`: changes over PHRASE_TOKENS tokens, so successive tokens share experts.
- noise of standard deviation 1, new for each token.

Locality differs between layers: it is low in a model's first layers. `depth` are factors of the three standard deviations at
equal distances over the depth of the model. The layers' draws are independent of each other.

`fit` finds the parameters whose hit rates, over all cache sizes under LRU, are nearest to those of a trace. A model with
more experts or another top-k takes the same parameters, which is an assumption.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.errors import HeadraceError

PHRASE_TOKENS = 2.0
MOST_TOKENS, MOST_LAYERS, MOST_DEPTH = 768, 8, 16  # of a trace, in a fit
STEPS = (0.6, 0.3, 0.15, 0.08)  # of the search, in logarithms of the parameters
HALVINGS = 6  # of the search for the factors of the layers
LARGEST = 8.0  # of a standard deviation; noise hardly matters then


@dataclass(frozen=True)
class Locality:
    """Parameters of synthetic routing. `source`: what they were fitted to."""

    popularity: float
    topic: float
    topic_tokens: float
    phrase: float
    depth: tuple[float, ...] = (1.0,)
    source: str = ""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Locality:
        """The parameters with these names. Raises `HeadraceError` for others."""
        try:
            made = cls(**{**values, "depth": tuple(map(float, values.get("depth", (1.0,))))})
            numbers = [made.popularity, made.topic, made.topic_tokens, made.phrase, *made.depth]
            if not made.depth or not all(0 <= n < math.inf for n in numbers) or made.topic_tokens < 1:
                raise ValueError("a number is out of range")
        except (TypeError, ValueError) as e:
            raise HeadraceError(
                f"routing {dict(values)!s:.120} has impossible parameters ({e}); write the rehearsal again"
            ) from e
        return made

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "depth": list(self.depth)}


def synthetic(locality: Locality, tokens: int, layers: int, experts: int, top_k: int, seed: int = 0) -> np.ndarray:
    """Choices with this locality, int32 [tokens, layers, top-k], the highest score first."""
    return _chosen(locality, _Draws(tokens, layers, experts, seed), top_k)


class _Draws:
    """The standard normal numbers behind the scores of `tokens` tokens, made token by token from one seed."""

    def __init__(self, tokens: int, layers: int, experts: int, seed: int) -> None:
        self.shape = tokens, layers, experts
        self._seed = seed

    def __iter__(self) -> Any:
        rng = np.random.default_rng(self._seed)
        yield from (rng.standard_normal((3, *self.shape[1:]), np.float32) for _ in range(self.shape[0] + 1))


def _chosen(locality: Locality, draws: _Draws, top_k: int) -> np.ndarray:
    tokens, layers, _ = draws.shape
    out = np.empty((tokens, layers, top_k), np.int32)
    places = (np.arange(layers) + 0.5) / layers * len(locality.depth) - 0.5
    factor = np.interp(places, np.arange(len(locality.depth)), locality.depth).astype(np.float32)[:, None]
    keep = np.exp(-1 / np.array([locality.topic_tokens, PHRASE_TOKENS], np.float32))[:, None, None]
    share = np.array([locality.topic, locality.phrase], np.float32)[:, None, None] * factor
    every = iter(draws)
    first = next(every)
    constant, state = locality.popularity * factor * first[0], first[1:]
    for token, new in enumerate(every):
        state = keep * state + np.sqrt(1 - keep**2) * new[1:]
        score = constant + (share * state).sum(axis=0) + new[0]
        best = np.argpartition(-score, top_k - 1, axis=-1)[:, :top_k]
        order = np.argsort(-np.take_along_axis(score, best, axis=-1), axis=-1)
        out[token] = np.take_along_axis(best, order, axis=-1)
    return out


def hit_rates(chosen: np.ndarray, experts: int) -> np.ndarray:
    """Hit rate of each layer under LRU by the number of slots, float64 [layers, experts]: entry n is that of n + 1 slots.
    The cache is empty at first. `chosen`: int [tokens, layers, top-k]."""
    tokens, layers, top_k = chosen.shape
    last = np.full((layers, experts), -1, np.int32)  # token of the last use
    counts = np.zeros((layers, experts + 1), np.int64)  # by place in the order of recency; the last one: not used before
    rows = np.arange(layers)[:, None]
    for token, ids in enumerate(chosen):
        own = last[rows, ids]
        place = (last[:, None, :] > own[:, :, None]).sum(axis=-1)
        place += np.arange(top_k) * (own >= 0)  # of experts used by one earlier token, on average half come first
        np.add.at(counts, (rows, np.where(own < 0, experts, np.minimum(place, experts - 1))), 1)
        last[rows, ids] = token
    return counts[:, :experts].cumsum(axis=1) / (tokens * top_k)


def fit(chosen: np.ndarray, experts: int, source: str = "", seed: int = 0) -> Locality:
    """The parameters for the choices of a trace, int [tokens, layers, top-k]. Raises `HeadraceError` for too short a one."""
    chosen = chosen[:MOST_TOKENS]
    tokens, layers, top_k = chosen.shape
    if tokens < 32 or top_k >= experts:
        raise HeadraceError(
            f"routing of {tokens} tokens, top-{top_k} of {experts} is too little to fit; give at least 32 tokens"
        )
    rates = hit_rates(chosen, experts)
    some = np.unique(np.linspace(0, layers - 1, min(layers, MOST_LAYERS)).round().astype(int))
    wanted, draws = rates[some].mean(axis=0), _Draws(tokens, len(some), experts, seed)

    def error(x: tuple[float, ...]) -> float:
        found = hit_rates(_chosen(_of(x), draws, top_k), experts).mean(axis=0)
        return float(((found - wanted)[top_k - 1 :] ** 2).mean())

    best: tuple[float, ...] = (0.0, 0.0, math.log(32), 0.0)
    least = error(best)
    for step in STEPS:
        better = True
        while better:
            better = False
            for number, sign in itertools.product(range(len(best)), (1, -1)):
                tried = tuple(value + sign * step * (number == n) for n, value in enumerate(best))
                if max(tried[0], tried[1], tried[3]) <= math.log(LARGEST) and tried[2] >= 0 and (e := error(tried)) < least:
                    best, least, better = tried, e, True
    found = _of(best)
    return dataclasses.replace(found, depth=_depth(found, rates, tokens, top_k, seed), source=source)


def _of(x: tuple[float, ...]) -> Locality:
    popularity, topic, tokens, phrase = (round(math.exp(value), 3) for value in x)
    return Locality(popularity, topic, tokens, phrase)


def _depth(locality: Locality, rates: np.ndarray, tokens: int, top_k: int, seed: int) -> tuple[float, ...]:
    """Factors at equal distances over the layers, for hit rates of each part as in `rates` [layers, experts]."""
    layers, experts = rates.shape
    parts = min(layers, MOST_DEPTH)
    part = np.arange(layers) * parts // layers
    wanted = np.array([rates[part == n].mean(axis=0)[top_k - 1 :].mean() for n in range(parts)])
    low, high = np.full(parts, 0.02), np.full(parts, 3.0)
    draws = _Draws(tokens, 2 * parts, experts, seed + 1)
    for _ in range(HALVINGS):
        middle = np.sqrt(low * high)
        doubled = dataclasses.replace(locality, depth=tuple(np.repeat(middle, 2)))
        found = (
            hit_rates(_chosen(doubled, draws, top_k), experts)[:, top_k - 1 :].mean(axis=1).reshape(parts, 2).mean(axis=1)
        )
        low, high = np.where(found < wanted, middle, low), np.where(found < wanted, high, middle)
    return tuple(np.sqrt(low * high).round(3).tolist())
