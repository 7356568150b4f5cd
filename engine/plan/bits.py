"""Bits: the width of each routed expert's projections, from a budget and the expert's frequency.

The search chooses a few numbers instead of tens of thousands: a share of the experts' weights keeps the high width
(`hot_share`, a budget that is equivalent to average bits), and the experts with the largest importance get it. Importance is
frequency ** freq_exponent, where frequency is an expert's share of its layer's uses. Experts of all layers are taken
together, by importance per byte, until the budget is spent. A layer has at most two widths, since one gather computes one
width.
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
    """Bits of every projection of every routed expert.

    Arrays are [layers, experts, projections], with projections in the order of `ExpertLayer.projections`. If a layer has
    fewer experts or projections than others, `bits` is 0 there.
    """

    bits: np.ndarray  # uint8
    importance: np.ndarray  # float64; all 1 if all experts have the same width
    weights: np.ndarray  # int64, number of weights

    @property
    def average_bits(self) -> float:
        """Mean over all weights of routed experts, without scales and biases."""
        return float((self.bits * self.weights).sum() / self.weights.sum())

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of a hash over the bits."""
        return hashlib.sha256(repr(self.bits.shape).encode() + self.bits.tobytes()).hexdigest()[:16]

    @property
    def fingerprint(self) -> str | None:
        """The digest, or None if all weights have one width."""
        return None if len(np.unique(self.bits[self.weights > 0])) == 1 else self.digest


def compute_plan(checkpoint: Checkpoint, knobs: Knobs, profile: Profile | None = None) -> BitsPlan:
    """Return the plan that `knobs` describe.

    Knobs that need routing (see `needs_routing`) need a `profile`. Without one, the budget is spent evenly on the first
    experts of all layers. A token needs as many slots under that plan as under any other with the same budget, so sizes can
    be computed from it. Raises `KnobError` for a width that the checkpoint does not have.
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
    """Return whether the plan depends on how often each expert is chosen."""
    return knobs.cold_bits is not None and bool(knobs.freq_exponent)


def allocate(low: np.ndarray, high: np.ndarray, weights: np.ndarray, importance: np.ndarray, share: float) -> np.ndarray:
    """Return bits [layers, experts, projections]: `high` for the experts taken, `low` for the others.

    The budget is `share` of the cost of raising every expert, in bits of weights. It is never exceeded, and the unspent rest
    is less than the cost of one expert. An expert's importance is the sum over its projections. Experts are taken by
    importance per byte, ties by layer and expert; an expert that exceeds the remaining budget is skipped. Importance is
    compared to 6 decimal digits of its mantissa, so that experts that differ only by rounding are ties on every machine.
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
    """Return each projection's importance, float64 [layers, experts, projections]; 1 with an exponent of 0."""
    worth = np.ones(weights_of(checkpoint).shape)
    if knobs.freq_exponent and profile is not None:
        worth *= profile.frequency[..., None] ** knobs.freq_exponent
    return worth


def hot_share_for(checkpoint: Checkpoint, knobs: Knobs, average_bits: float) -> float:
    """Return the `hot_share` whose budget is `average_bits`. Raises `KnobError` if the two widths cannot give it."""
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
    """Return each projection's width at `bits`, uint8 [layers, experts, projections], 0 where there is no projection.

    A projection never has more than the checkpoint's own bits, and has those if `bits` is None.
    """
    out = np.zeros(weights_of(checkpoint).shape, np.uint8)
    for number, layer in enumerate(checkpoint.layers):
        own = [layer.bits(projection) for projection in layer.projections]
        out[number, : layer.experts, : len(own)] = own if bits is None else np.minimum(own, bits)
    return out


def weights_of(checkpoint: Checkpoint) -> np.ndarray:
    """Return the number of weights of every projection of every expert, int64 [layers, experts, projections]."""
    layers = checkpoint.layers
    shape = len(layers), max(layer.experts for layer in layers), max(len(layer.projections) for layer in layers)
    out = np.zeros(shape, np.int64)
    for number, layer in enumerate(layers):
        for p, projection in enumerate(layer.projections):
            weight = layer.tensor(f"{projection}.weight")
            assert weight is not None  # guaranteed by `ExpertLayer.check`
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
                f"{name}={bits} is above the checkpoint's {checkpoint.expert_bits} bits and gains nothing; "
                f"use at most {checkpoint.expert_bits}"
            )
