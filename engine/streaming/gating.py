"""Gates: what the router's weights say of an expert, known before it is read.

A switch sees its input and the chosen experts; the weights come afterwards, when the block multiplies the switch's outputs
by them: `(y * weights[..., None]).sum(-2)`. So a switch can hand on outputs that do not exist yet. When they are multiplied
the weights are there, what to read is decided, and only then experts are read and computed (`Deferred`). That a block of a
kind unknown to us does just that is tried before the first token, by asking a copy of it (`Asked`).

What is decided (`Gates.decide`) is of experts that are not cached (have no slot, not even one that a prefetch is still
filling) when their layer asks for them; never of a token's top-1:

- `cache_prior` (Cache-Prior of arXiv 2412.00099) raises the logit of every cached expert by so many times the range of the
  logits of the token's candidates, which are the 2 top-k that the router ranks first. An uncached expert, the one with the
  smallest weight first, gives way to the cached candidate with the largest that is not chosen yet, if that is ahead of it
  then. Logits are taken to be the logarithms of weights: for a softmax router their differences are the same. A router
  that selects by more than weight (a correction bias) may leave out an expert of larger weight; the logits of a token's
  candidates are dealt out anew then, the largest to those that it chose. So a prior towards 0 changes nothing.
- `cold_drop` then leaves out what is still not cached and has less than cold_drop / top-k of the token's gate weight: it is
  neither read nor computed.

The experts that stay have the weights that the unbiased router gives them. Where a model's weights always sum to the same
number (which is found out by asking it), they are scaled to sum to that again; where not, they stay as they are. Tokens of a
prefill are decided together: an expert that one of them keeps is read, so that it counts as cached for all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from engine.knobs import Knobs

TOP_K = ("top_k", "num_experts_per_tok", "num_experts_per_token")  # what mlx-lm's blocks and gates call it
LEFT_OUT = -1
TRIED_AT = (0.0, 1.0, 3.0, 10.0)  # sizes of the made-up inputs: the weights of no router that leaves them be sum alike there
SUMS_WITHIN = 1e-3  # relative
SMALLEST = float(np.finfo(np.float32).tiny)


class Outputs:
    """A switch's outputs [..., top_k, dims] on their way to the weights [..., top_k, 1]; `weighed` gives their product."""

    __slots__ = ("_weighed", "_y")

    def __init__(self, y: mx.array, weighed: Callable[[mx.array], mx.array]) -> None:
        self._y = y
        self._weighed = weighed

    def __mul__(self, weights: mx.array) -> mx.array:
        return self._weighed(weights)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._y, name)


class Deferred(Outputs):
    """Outputs that are not computed before the weights are known; `like` has their shape and type, and no more of it is to
    be had."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name not in ("shape", "dtype", "ndim", "size"):
            raise AttributeError(f"outputs that wait for their weights have no {name}")
        return getattr(self._y, name)


class Asked(Exception):
    """A block that was asked has come to its switch, with the input `x` and the choice `ids` [..., top_k], or beyond it to
    the `weights` [..., top_k, 1]: the rest of it need not run."""

    def __init__(self, x: mx.array, ids: mx.array, weights: Any = None) -> None:
        self.x = x
        self.ids = ids
        self.weights = weights


class _StandIn(nn.Module):
    """Stands where the switch stood in a copy of a block."""

    def __init__(self, call: Callable[[mx.array, mx.array], Any]) -> None:
        super().__init__()
        object.__setattr__(self, "call", call)

    def __call__(self, x: mx.array, indices: mx.array) -> Any:
        return self.call(x, indices)


def with_stand_in(block: Any, switch: str, call: Callable[[mx.array, mx.array], Any]) -> Any:
    """A copy of a block in which `call` stands for the switch named `switch`."""
    copied = copy.copy(block)
    copied[switch] = _StandIn(call)
    return copied


def deferred(x: mx.array, ids: mx.array, weighed: Callable[[mx.array], mx.array]) -> Deferred:
    """What a switch with input `x` and choice `ids` hands on if `weighed` computes its outputs times their weights."""
    return Deferred(mx.zeros((*ids.shape, x.shape[-1]), x.dtype), weighed)


def asking(block: Any, switch: str, *, weigh: bool) -> Callable[[mx.array], Asked]:
    """A function from a block's input [1, tokens, dims] to what its own router chooses, and with what weights if `weigh`.

    The block itself is asked, up to the point where it calls its switch or multiplies the outputs: whatever it does to
    choose, this does too. Raises what the block raises, and `TypeError` if it does neither.
    """

    def call(x: mx.array, ids: mx.array) -> Any:
        def weighed(weights: mx.array) -> mx.array:
            raise Asked(x, ids, weights)

        if weigh:
            return deferred(x, ids, weighed)
        raise Asked(x, ids)

    copied = with_stand_in(block, switch, call)

    def ask(x: mx.array) -> Asked:
        try:
            copied(x)
        except Asked as asked:
            return asked
        raise TypeError("the block did not weigh its switch's outputs" if weigh else "the block did not call its switch")

    return ask


def weighs(block: Any, switch: str, dims: int) -> bool:
    """Whether a block multiplies its switch's outputs by one weight an expert before it does anything else with them."""
    try:
        asked = asking(block, switch, weigh=True)(mx.zeros((1, 1, dims)))
    except Exception:  # whatever a block of a kind unknown to us raises: it is left alone
        return False
    return getattr(asked.weights, "shape", None) == (*asked.ids.shape, 1)


def adds_up(block: Any, switch: str, x: mx.array) -> bool:
    """Whether all that a block does with its weighed outputs is to add them up: their sum alone gives it the same."""

    def answer(as_one: bool) -> mx.array:
        def call(x: mx.array, ids: mx.array) -> Deferred:
            count = 1 if as_one else ids.shape[-1]
            total = mx.random.normal((*ids.shape[:-1], 1, x.shape[-1]), key=mx.random.key(1))
            return deferred(x, ids, lambda _: mx.repeat(total / count, count, axis=-2))

        return with_stand_in(block, switch, call)(x)

    return bool(mx.allclose(answer(True), answer(False), atol=1e-4))


def widened(block: Any, top_k: int, wide: int) -> Any | None:
    """A copy of a block that chooses `wide` experts; None if the place where it says how many is not found."""
    block = copy.copy(block)
    places = [(block, name) for name in TOP_K if getattr(block, name, None) == top_k]
    for child in [n for n in ("gate", "router") if isinstance(block.get(n), nn.Module)]:
        module = block[child] = copy.copy(block[child])
        places += [(module, name) for name in TOP_K if getattr(module, name, None) == top_k]
    for module, name in places:
        setattr(module, name, wide)
    return block if places else None


@dataclass(frozen=True)
class Choice:
    """What is left of a router's choice: experts int32 and weights float32 [tokens, top_k]; `LEFT_OUT` has weight 0."""

    ids: np.ndarray
    weights: np.ndarray
    swapped: int = 0
    dropped: int = 0
    dropped_mass: float = 0.0  # their shares of the gate weight, summed


@dataclass(frozen=True)
class Gates:
    """The decisions of one layer. `candidates` asks its router for more experts than it chooses; None without a
    `cache_prior`."""

    cold_drop: float
    cache_prior: float
    sums_alike: bool  # the model's weights of a token always sum to the same number
    candidates: Callable[[mx.array], Asked] | None = None

    def decide(
        self, ids: np.ndarray, weights: np.ndarray, candidates: tuple[np.ndarray, np.ndarray] | None, cached: np.ndarray
    ) -> Choice | None:
        """What becomes of the choice `ids` with `weights` [tokens, top_k], both in any order, where `cached` is [experts].

        `candidates`: the same of the router that was asked for more. None if nothing changes.
        """
        first = np.zeros(ids.shape, bool)
        np.put_along_axis(first, weights.argmax(axis=-1, keepdims=True), True, axis=-1)
        chosen, theirs = ids, weights
        if candidates is not None:
            chosen, theirs = self._preferred(ids, weights, *candidates, cached, first)
        shares = theirs / theirs.sum(axis=-1, keepdims=True)
        there = cached.copy()
        there[chosen[first | (shares >= self.cold_drop / ids.shape[-1])]] = True
        out = ~there[chosen]
        swapped, dropped = int((chosen != ids).sum()), int(out.sum())
        if not swapped and not dropped:
            return None
        left = np.where(out, 0, theirs)
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
        """The choice with cached candidates in the place of uncached experts (of `first` none), and its weights: the wide
        router's where a token's choice has changed.

        An expert that one token does not give up is read: it counts as cached, and all is decided anew.
        """
        same = wide[:, None, :] == ids[..., None]
        place = same.argmax(axis=-1)  # of every chosen expert among the candidates
        known = same.any(axis=-1).all(axis=-1, keepdims=True)  # equal logits may be ranked in two ways
        inside = same.any(axis=1)
        logits = np.log(np.maximum(wide_weights, SMALLEST))
        best_first = np.lexsort((-logits, ~inside))
        np.put_along_axis(logits, best_first, -np.sort(-logits, axis=-1), axis=-1)
        rise = self.cache_prior * (logits.max(axis=-1, keepdims=True) - logits.min(axis=-1, keepdims=True))
        own = np.take_along_axis(wide_weights, place, axis=-1)
        there = cached.copy()
        while True:
            leaving = np.where(there[ids] | first | ~known, np.inf, np.take_along_axis(logits, place, axis=-1))
            coming = np.where(there[wide] & ~inside, logits, -np.inf)
            into = np.argsort(-coming, axis=-1, kind="stable")[:, : ids.shape[-1]]
            out = np.argsort(leaving, axis=-1, kind="stable")[:, : into.shape[-1]]
            ahead = np.take_along_axis(coming, into, axis=-1) + rise > np.take_along_axis(leaving, out, axis=-1)
            chosen, theirs = ids.copy(), own.copy()
            for mine, others in ((chosen, wide), (theirs, wide_weights)):
                both = np.take_along_axis(others, into, axis=-1), np.take_along_axis(mine, out, axis=-1)
                np.put_along_axis(mine, out, np.where(ahead, *both), axis=-1)
            read = chosen[~there[chosen]]
            if not len(read) or len(ids) == 1:
                return chosen, np.where((chosen != ids).any(axis=-1, keepdims=True), theirs, weights)
            there[read] = True


def gates_of(block: Any, switch: str, *, dims: int, experts: int, top_k: int, knobs: Knobs) -> Gates:
    """The gates of a layer, whose block [1, tokens, dims] is asked. Raises `ValueError` with the reason why it has none."""
    kind = type(block).__name__
    sizes = mx.repeat(mx.array(TRIED_AT), 4)[:, None]
    x = mx.random.normal((1, len(sizes), dims), key=mx.random.key(0)) * sizes
    if not weighs(block, switch, dims) or not adds_up(block, switch, x):
        raise ValueError(f"{kind} does not just add up its experts' outputs times the gate weights")
    ask = asking(block, switch, weigh=True)
    sums = np.array(ask(x).weights, np.float32).reshape(len(sizes), -1).sum(axis=-1)
    sums_alike = bool(np.ptp(sums) <= SUMS_WITHIN * np.abs(sums).max())
    candidates = None
    if knobs.cache_prior:
        wide = min(experts, 2 * top_k)
        copied = widened(block, top_k, wide)
        if copied is None:
            raise ValueError(f"the router of {kind} cannot be asked for {wide} experts")
        candidates = asking(copied, switch, weigh=True)
        asked = candidates(x)
        if asked.ids.shape[-1] != wide or asked.x.size != x.size or not mx.array_equal(asked.x.reshape(x.shape), x):
            raise ValueError(f"the router of {kind} cannot be asked for {wide} experts by what its switch sees")
    return Gates(knobs.cold_drop, knobs.cache_prior, sums_alike, candidates)
