"""Gating: which experts a layer uses, decided from the gate weights and the cache before anything is read.

Decisions concern experts that are not cached when their layer needs them: experts without a slot. An expert that a prefetch
is still reading has a slot. A token's top-1 expert never changes.

- `cache_prior` (Cache-Prior of arXiv 2412.00099) adds cache_prior x (range of the candidates' logits) to the logit of every
  cached expert. A token's candidates are the 2 top-k experts that the router ranks first. Uncached experts, smallest weight
  first, are replaced by the cached candidate with the largest logit that is not chosen yet, if its raised logit is larger.
  Logits are logarithms of weights; for a softmax router their differences are the same. A router that selects by more than
  weight (a correction bias) may leave out an expert of larger weight. The logits of a token's candidates are therefore
  reassigned, the largest to the chosen ones, so that a prior towards 0 changes nothing.
- `cold_drop` then leaves out experts that are still not cached and have less than cold_drop / top-k of the token's gate
  weight. They are neither read nor computed.

The remaining experts keep the weights of the unbiased router. If a model's weights always have the same sum (which a probe
finds out), they are rescaled to that sum. Tokens of a prefill are decided together: an expert that one token keeps is read,
so it counts as cached for all tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from engine.knobs import Knobs
from engine.model.probe import Probed, probe, sums_outputs, weights_outputs, widened

from .layer_cache import LEFT_OUT

TRIED_AT = (0.0, 1.0, 3.0, 10.0)  # scales of the probe's random inputs; only a normalising router has equal sums at all
SUMS_WITHIN = 1e-3  # relative
SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Choice:
    """The experts that remain, int32 [tokens, top_k], and their weights, float32; `LEFT_OUT` has weight 0."""

    ids: np.ndarray
    weights: np.ndarray
    swapped: int = 0
    dropped: int = 0
    dropped_mass: float = 0.0  # sum of the dropped experts' shares of their token's gate weight


@dataclass(frozen=True)
class Gates:
    """The decisions of one layer. `candidates` runs its router for more experts; None without a `cache_prior`."""

    cold_drop: float
    cache_prior: float
    sums_alike: bool  # a token's weights always have the same sum
    candidates: Callable[[mx.array], Probed] | None = None

    def decide(
        self, ids: np.ndarray, weights: np.ndarray, candidates: tuple[np.ndarray, np.ndarray] | None, cached: np.ndarray
    ) -> Choice | None:
        """Return the choice that replaces `ids` with `weights` [tokens, top_k], in any order; None if nothing changes.

        `cached` is bool [experts]. `candidates` are ids and weights from the router that chooses more experts.
        """
        first = np.zeros(ids.shape, bool)
        np.put_along_axis(first, weights.argmax(axis=-1, keepdims=True), True, axis=-1)
        chosen, own_weights = ids, weights
        if candidates is not None:
            chosen, own_weights = self._preferred(ids, weights, *candidates, cached, first)
        shares = own_weights / own_weights.sum(axis=-1, keepdims=True)
        kept = cached.copy()
        kept[chosen[first | (shares >= self.cold_drop / ids.shape[-1])]] = True
        out = ~kept[chosen]
        swapped, dropped = int((chosen != ids).sum()), int(out.sum())
        if not swapped and not dropped:
            return None
        left = np.where(out, 0, own_weights)
        if self.sums_alike:
            left = left * (weights.sum(axis=-1, keepdims=True) / left.sum(axis=-1, keepdims=True))
        return Choice(
            np.where(out, LEFT_OUT, chosen).astype(np.int32), left.astype(np.float32), swapped, dropped,
            float(shares[out].sum()),
        )  # fmt: skip

    def _preferred(
        self, ids: np.ndarray, weights: np.ndarray, wide: np.ndarray, wide_weights: np.ndarray, cached: np.ndarray,
        first: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Return the choice with uncached experts, except `first`, replaced by cached candidates, and its weights.

        A token whose choice changed has the wide router's weights. An expert that any token keeps is read, so it counts as
        cached, and the decision is repeated.
        """
        same = wide[:, None, :] == ids[..., None]
        place = same.argmax(axis=-1)  # each chosen expert's position among the candidates
        known = same.any(axis=-1).all(axis=-1, keepdims=True)  # equal logits may be ranked differently
        inside = same.any(axis=1)
        logits = np.log(np.maximum(wide_weights, SMALLEST))
        best_first = np.lexsort((-logits, ~inside))
        np.put_along_axis(logits, best_first, -np.sort(-logits, axis=-1), axis=-1)
        rise = self.cache_prior * (logits.max(axis=-1, keepdims=True) - logits.min(axis=-1, keepdims=True))
        own = np.take_along_axis(wide_weights, place, axis=-1)
        available = cached.copy()
        while True:
            leaving = np.where(available[ids] | first | ~known, np.inf, np.take_along_axis(logits, place, axis=-1))
            coming = np.where(available[wide] & ~inside, logits, -np.inf)
            into = np.argsort(-coming, axis=-1, kind="stable")[:, : ids.shape[-1]]
            out = np.argsort(leaving, axis=-1, kind="stable")[:, : into.shape[-1]]
            ahead = np.take_along_axis(coming, into, axis=-1) + rise > np.take_along_axis(leaving, out, axis=-1)
            chosen, new_weights = ids.copy(), own.copy()
            for mine, others in ((chosen, wide), (new_weights, wide_weights)):
                both = np.take_along_axis(others, into, axis=-1), np.take_along_axis(mine, out, axis=-1)
                np.put_along_axis(mine, out, np.where(ahead, *both), axis=-1)
            read = chosen[~available[chosen]]
            if not len(read) or len(ids) == 1:
                return chosen, np.where((chosen != ids).any(axis=-1, keepdims=True), new_weights, weights)
            available[read] = True


def gates_of(block: Any, switch: str, *, dims: int, experts: int, top_k: int, knobs: Knobs) -> Gates:
    """Return the gates of a layer, after probing its block [1, tokens, dims].

    Raises `ValueError` with the reason if the block does not allow such decisions.
    """
    kind = type(block).__name__
    sizes = mx.repeat(mx.array(TRIED_AT), 4)[:, None]
    x = mx.random.normal((1, len(sizes), dims), key=mx.random.key(0)) * sizes
    if not weights_outputs(block, switch, dims) or not sums_outputs(block, switch, x):
        raise ValueError(f"{kind} does not only sum its experts' outputs times the gate weights")
    run = probe(block, switch, weigh=True)
    sums = np.array(run(x).weights, np.float32).reshape(len(sizes), -1).sum(axis=-1)
    sums_alike = bool(np.ptp(sums) <= SUMS_WITHIN * np.abs(sums).max())
    candidates = None
    if knobs.cache_prior:
        wide = min(experts, 2 * top_k)
        copied = widened(block, switch, top_k, wide, dims)
        if copied is None:
            raise ValueError(f"the router of {kind} cannot choose {wide} experts")
        candidates = probe(copied, switch, weigh=True)
        probed = candidates(x)
        if probed.ids.shape[-1] != wide or probed.x.size != x.size or not mx.array_equal(probed.x.reshape(x.shape), x):
            raise ValueError(f"the router of {kind} cannot choose {wide} experts from its switch's input")
    return Gates(knobs.cold_drop, knobs.cache_prior, sums_alike, candidates)
