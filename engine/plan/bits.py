"""Bits: how many each routed expert's projections get, from a budget and how often it is used.

Precision per expert is a few numbers, not thirty thousand: a share of the experts' weights keeps the high width
(`hot_share`, a budget that says average bits as well), and who gets it is the order of an importance, frequency **
freq_exponent. Frequency is an expert's share of its layer's uses. Experts are taken by importance a byte until the budget is
used, over all layers together. There are two widths in a layer at the most, since a gather takes one a call.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import KnobError
from engine.knobs import Knobs
from engine.routing.profile import Profile


@dataclass(frozen=True)
class BitsPlan:
    """What every projection of every routed expert gets. Arrays are [layers, experts, projections], projections in the
    order of `ExpertLayer.projections`; where a layer has fewer of either, `bits` is 0."""

    bits: np.ndarray  # uint8
    importance: np.ndarray  # float64; all 1 if nothing was chosen
    weights: np.ndarray  # int64, how many numbers each projection has

    @property
    def average_bits(self) -> float:
        """Mean over all weights of routed experts; scales and biases are not counted."""
        return float((self.bits * self.weights).sum() / self.weights.sum())

    @property
    def digest(self) -> str:
        """16 hexadecimal digits over the bits."""
        return hashlib.sha256(repr(self.bits.shape).encode() + self.bits.tobytes()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str | None:
        """The digest; None if all weights have one width."""
        return None if len(np.unique(self.bits[self.weights > 0])) == 1 else self.digest


def compute_plan(checkpoint: Checkpoint, knobs: Knobs, profile: Profile | None = None) -> BitsPlan:
    """The plan that `knobs` describe. `profile` is for those that need one (see `needs_routing`); without it the budget is
    spent evenly on the first experts of all layers, which needs as many slots for a token as any plan of that budget, so
    that sizes can be foreseen.

    Raises `KnobError` for a width that the checkpoint does not have to give.
    """
    _check_bits(checkpoint, knobs)
    weights = weights_of(checkpoint)
    high = widths(checkpoint, knobs.expert_bits)
    if knobs.cold_bits is None:
        return BitsPlan(high, np.ones(high.shape), weights)
    low = widths(checkpoint, knobs.cold_bits)
    if needs_routing(knobs) and profile is None:
        worth = np.broadcast_to(1 - np.arange(high.shape[1])[:, None] / high.shape[1], high.shape)
    else:
        worth = importance(checkpoint, knobs, profile)
    bits = allocate(low, high, weights, worth, knobs.resolved_hot_share)
    return BitsPlan(bits, worth, weights)


def needs_routing(knobs: Knobs) -> bool:
    """Whether the plan depends on which experts are chosen."""
    return knobs.cold_bits is not None and bool(knobs.freq_exponent)


def allocate(low: np.ndarray, high: np.ndarray, weights: np.ndarray, importance: np.ndarray, share: float) -> np.ndarray:
    """Bits [layers, experts, projections]: `low`, or `high` for the experts taken. `share` is the part of all that raising
    everything would cost, in bits of weights; never more is spent, and less by no more than one expert would cost.

    An expert's importance is the sum over its projections. Experts are taken by importance a byte, ties by layer and expert;
    one that is too large for what is left is passed over. Sums are compared to 6 digits, so that experts which only differ
    by float32's rounding are ties everywhere.
    """
    cost = (high.astype(np.int64) - low) * weights
    expert_cost = cost.sum(axis=2, keepdims=True)
    worth = np.where(cost > 0, importance, 0.0).sum(axis=2, keepdims=True) / np.maximum(expert_cost, 1)
    mantissa, exponent = np.frexp(worth)
    worth = np.ldexp(np.round(mantissa, 6), exponent)
    hot = np.zeros(expert_cost.shape, bool)
    left = round(share * int(cost.sum()))
    for expert in np.argsort(-worth, axis=None, kind="stable"):
        if expert_cost.flat[expert] <= left:
            hot.flat[expert] = True
            left -= int(expert_cost.flat[expert])
    return np.where(hot, high, low).astype(np.uint8)


def importance(checkpoint: Checkpoint, knobs: Knobs, profile: Profile | None) -> np.ndarray:
    """Importance of every projection, float64 [layers, experts, projections]; an exponent of 0 leaves frequency out."""
    worth = np.ones(weights_of(checkpoint).shape)
    if knobs.freq_exponent and profile is not None:
        worth *= profile.frequency[..., None] ** knobs.freq_exponent
    return worth


def hot_share_for(checkpoint: Checkpoint, knobs: Knobs, average_bits: float) -> float:
    """The `hot_share` whose budget is `average_bits`. Raises `KnobError` for one that the two widths cannot give."""
    if knobs.cold_bits is None:
        raise KnobError(f"average_bits={average_bits:g} has no effect without cold_bits; set cold_bits as well")
    _check_bits(checkpoint, knobs)
    weights = weights_of(checkpoint)
    low, high = (
        float((widths(checkpoint, bits) * weights).sum() / weights.sum()) for bits in (knobs.cold_bits, knobs.expert_bits)
    )
    if not low <= average_bits <= high or low == high:
        side = "below the lowest" if average_bits < low else "above the highest"
        end = low if average_bits < low else high
        raise KnobError(
            f"average_bits={average_bits:g} is {side} that expert_bits and cold_bits can give ({end:.4g}); "
            f"give {low:.4g} to {high:.4g}, or change the two"
        )
    return (average_bits - low) / (high - low)


def widths(checkpoint: Checkpoint, bits: int | None) -> np.ndarray:
    """What every projection has if all are to have `bits`, uint8 [layers, experts, projections]: no more than the
    checkpoint's own, and those if None. 0 where there is no projection."""
    out = np.zeros(weights_of(checkpoint).shape, np.uint8)
    for number, layer in enumerate(checkpoint.layers):
        own = [layer.bits(projection) for projection in layer.projections]
        out[number, : layer.experts, : len(own)] = own if bits is None else np.minimum(own, bits)
    return out


def weights_of(checkpoint: Checkpoint) -> np.ndarray:
    """How many weights every projection of every expert has, int64 [layers, experts, projections]."""
    layers = checkpoint.layers
    shape = len(layers), max(layer.experts for layer in layers), max(len(layer.projections) for layer in layers)
    out = np.zeros(shape, np.int64)
    for number, layer in enumerate(layers):
        for p, projection in enumerate(layer.projections):
            weight = layer.tensor(f"{projection}.weight")
            assert weight is not None  # `ExpertLayer.check` saw to it
            out[number, : layer.experts, p] = weight.shape[0] * layer.input_dims(projection)
    return out


def _check_bits(checkpoint: Checkpoint, knobs: Knobs) -> None:
    for name in ("expert_bits", "cold_bits"):
        bits = getattr(knobs, name)
        if bits is None:
            continue
        if checkpoint.levels is not None and bits not in checkpoint.levels:
            raise KnobError(
                f"{name}={bits} is not a level of the store {checkpoint.name}; use one of "
                f"{', '.join(map(str, checkpoint.levels))}, or pack the model again with other --levels"
            )
        if bits > checkpoint.expert_bits:
            raise KnobError(
                f"{name}={bits} is above the checkpoint's {checkpoint.expert_bits} bits and has nothing to gain; "
                f"use at most {checkpoint.expert_bits}"
            )
