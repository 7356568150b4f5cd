"""Banks: the experts of each layer at each width, and the number of slots for each, from headers and knobs alone.

`cache_gb` counts the memory of the slots. Every bank first gets the slots that one token can need (top-k, or all its experts
if they are fewer), since a token could not be computed with less. The rest is distributed slot by slot to the bank with the
smallest share of its experts cached, so that all layers end up with about the same share.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.cache.eviction import NO_EXPERTS
from engine.cache.slot_layout import Requantize, slot_bytes
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.experts import ExpertLayer
from engine.errors import KnobError
from engine.knobs import GB, NEEDS_MISSES, Knobs
from engine.model.backend import compute_dtype
from engine.routing.profile import Profile

from .bits import BitsPlan, compute_plan, needs_routing
from .bits_file import load_plan


@dataclass(kw_only=True)
class Bank:
    """Sizes of one bank: the experts `members` of layer number `layer`, in `slots` slots of `slot_bytes`."""

    layer: int
    members: np.ndarray
    slot_bytes: int
    least: int  # slots that one token can need
    slots: int
    pinned: np.ndarray = field(default_factory=lambda: NO_EXPERTS)  # members that are never evicted


@dataclass(kw_only=True)
class BankPlan(Bank):
    """One planned bank, whose experts are stored in `form` and requantized by `requantize`."""

    form: ExpertLayer
    requantize: dict[str, Requantize]


def plan_bits(checkpoint: Checkpoint, knobs: Knobs, profile: Profile | None = None) -> BitsPlan:
    """Return every expert's bits, from a saved plan or computed from the knobs (see `compute_plan`). Raises `KnobError`."""
    if knobs.bits_plan is not None:
        return load_plan(knobs.bits_plan, checkpoint)
    return compute_plan(checkpoint, knobs, profile)


def needs_profile(knobs: Knobs) -> bool:
    """Return whether bits or slots depend on how often each expert is used."""
    return needs_routing(knobs) or knobs.pinned_share > 0


def plan_banks(
    checkpoint: Checkpoint, knobs: Knobs, plan: BitsPlan | None = None, profile: Profile | None = None
) -> list[BankPlan]:
    """Return the banks of every layer with their slots, for the bits of `plan`, by default those of `knobs`.

    `profile` chooses the pinned experts; without it the choice is arbitrary, but the sizes are right. Raises `KnobError` for
    a cache below one token's experts, widths that the checkpoint does not have, and knobs without effect at this cache size.
    """
    if knobs.verify_reads and checkpoint.levels is None:
        raise KnobError(
            f"verify_reads has no effect: {checkpoint.name} is no packed store and has no checksums; pack it first "
            "(python -m engine pack), or leave it unset"
        )
    plan = plan or plan_bits(checkpoint, knobs, profile)
    banks = least_banks(checkpoint, plan)
    bits = knobs.expert_bits or checkpoint.expert_bits
    at = f"{bits} bits" if knobs.bits_plan is None else f"{plan.average_bits:.4g} bits on average"
    give_slots(banks, knobs, f"{checkpoint.name} at {at}", None if profile is None else profile.uses)
    return banks


def give_slots(banks: Sequence[Bank], knobs: Knobs, what: str, uses: np.ndarray | None) -> None:
    """Set the slots and the pinned experts of the banks of `what` for the cache of `knobs`.

    `uses`, int64 [layers, experts], choose the pinned ones. Raises `KnobError` as `plan_banks` does.
    """
    if knobs.cache_gb is None:
        for bank in banks:
            bank.slots = len(bank.members)
        return
    least = sum(b.least * b.slot_bytes for b in banks)
    budget = round(knobs.cache_gb * GB) - least
    if budget < 0:
        raise KnobError(
            f"cache_gb={knobs.cache_gb:g} is below one token's experts ({least / GB:.4g} GB for {what}); raise it or lower "
            "expert_bits"
        )
    distribute(banks, budget, knobs.cache_layer_shape)
    if all(bank.slots == len(bank.members) for bank in banks):
        _refuse_idle(knobs, banks)
    if knobs.pinned_share:
        _pin(banks, knobs.pinned_share, uses)


def least_banks(checkpoint: Checkpoint, plan: BitsPlan) -> list[BankPlan]:
    """Return each layer's bank, or its two with the wider first, with only the slots that one token can need."""
    banks = []
    for number, layer in enumerate(checkpoint.layers):
        rows = plan.bits[number, : layer.experts, : len(layer.projections)]
        for widths in np.unique(rows, axis=0)[::-1]:
            members = np.flatnonzero((rows == widths).all(axis=1))
            bits = dict(zip(layer.projections, widths.tolist(), strict=True))
            form = layer.at(bits)
            requantize = _requantize(form, bits)
            size = slot_bytes(form, requantize, compute_dtype())
            least = min(checkpoint.top_k, len(members))
            bank = BankPlan(
                layer=number, members=members, slot_bytes=size, least=least, slots=least, form=form, requantize=requantize
            )
            banks.append(bank)
    return banks


def _refuse_idle(knobs: Knobs, banks: Sequence[Bank]) -> None:
    """Raise `KnobError` for a knob that needs misses, when the cache holds every expert."""
    everything = sum(len(b.members) * b.slot_bytes for b in banks)
    for name in knobs.set_names():
        if name in NEEDS_MISSES:
            raise KnobError(
                f"{knobs.shown(name)} has no effect with cache_gb={knobs.cache_gb:g}, which holds every "
                f"expert ({everything / GB:.4g} GB); lower cache_gb or leave {name} unset"
            )


def distribute(banks: Sequence[Bank], budget: int, shape: float) -> None:
    """Distribute `budget` bytes slot by slot, each to the bank with the smallest share of its experts cached.

    With a `shape` the first layer's target is 1 + shape times the mean share and the last layer's 1 - shape times; the
    targets of the layers between them are linear.
    """
    last = max(1, banks[-1].layer)
    target = [1 + shape * (1 - 2 * bank.layer / last) for bank in banks]

    def place(i: int) -> tuple[float, int]:
        return banks[i].slots / len(banks[i].members) / target[i], i

    queue = [place(i) for i, bank in enumerate(banks) if bank.slots < len(bank.members)]
    heapq.heapify(queue)
    while queue:
        _, i = heapq.heappop(queue)
        bank = banks[i]
        if bank.slot_bytes <= budget:
            budget -= bank.slot_bytes
            bank.slots += 1
            if bank.slots < len(bank.members):
                heapq.heappush(queue, place(i))


def _pin(banks: Sequence[Bank], share: float, uses: np.ndarray | None) -> None:
    """Pin each bank's most used members to `share` of its slots, except the slots that one token can need."""
    for bank in banks:
        count = min(round(share * bank.slots), bank.slots - bank.least)
        order = np.arange(len(bank.members)) if uses is None else np.argsort(-uses[bank.layer][bank.members], kind="stable")
        if bank.slots < len(bank.members):
            bank.pinned = np.sort(bank.members[order[:count]])
    if not any(len(bank.pinned) for bank in banks):
        largest = max(banks, key=lambda b: b.slots)
        raise KnobError(
            f"pinned_share={share:g} pins nothing: a layer has at most {largest.slots} slots, of which one token needs "
            f"{largest.least}; raise it or cache_gb, or set it to 0"
        )


def _requantize(layer: ExpertLayer, widths: dict[str, int]) -> dict[str, Requantize]:
    """Return for each projection how it is requantized; projections that already have their width are left out."""
    out = {}
    for projection, bits in widths.items():
        if bits == layer.bits(projection):
            continue
        source = layer.quantization(projection)
        group_size = int(source["group_size"]) if source and source["mode"] == "affine" else 64
        columns = layer.input_dims(projection)
        if columns % group_size:
            group_size = 32
        if columns % group_size:
            raise KnobError(
                f"expert_bits={bits}: {layer.block}.{projection} has {columns} columns, not a multiple of 32; unset it"
            )
        out[projection] = Requantize(group_size, bits, source)
    return out
