"""Plan: which experts at which width, and how many slots each bank gets, from headers and knobs alone.

`cache_gb` counts the memory of the slots. Every bank first gets what one token can ask of it (top-k slots, or all its
experts if they are fewer), since less could not compute a token at all; the rest is dealt out slot by slot to the bank
with the smallest share of its experts cached, so that layers end up even.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.cache.eviction import NO_EXPERTS
from engine.cache.slot_layout import Requantize, slot_bytes
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.experts import ExpertLayer
from engine.errors import CheckpointError, KnobError
from engine.knobs import GB, NEEDS_MISSES, Knobs
from engine.model.architecture import has_architecture
from engine.model.backend import compute_dtype
from engine.routing.profile import Profile

from .bits import BitsPlan, compute_plan, needs_routing
from .bits_file import load_plan


@dataclass
class BankPlan:
    """One bank to be: the experts `members` of layer number `layer`, read in `form` and brought to the width that
    `requantize` leads to."""

    layer: int
    form: ExpertLayer
    members: np.ndarray
    requantize: dict[str, Requantize]
    slot_bytes: int
    least: int  # slots that one token can ask for
    slots: int
    pinned: np.ndarray = field(default_factory=lambda: NO_EXPERTS)  # members that never leave


@dataclass(frozen=True)
class Footprint:
    """What a model takes with given knobs, by arithmetic. Sizes in GB (10^9 bytes), as laid out in memory."""

    architecture: str
    fingerprint: str
    moe_layers: int
    experts: int  # routed, over all layers
    top_k: int
    expert_bits: int  # of the checkpoint
    levels: tuple[int, ...]  # widths in a packed store; empty if it is none
    one_token_gb: float  # the smallest cache_gb that is legal, whoever is hot
    all_experts_gb: float  # the cache_gb at which every expert fits
    resident_gb: float  # everything else: attention, routers, shared experts, embeddings
    predicted_peak_gb: float  # resident and cached weights; the interpreter and the activations come on top


def footprint(checkpoint: str | Path | Checkpoint, knobs: Knobs | None = None) -> Footprint:
    """Sizes of a checkpoint under `knobs`, from its headers. Raises `CheckpointError`, also for an unknown architecture, and
    `KnobError` for a `top_k` or `resident_bits` that it cannot have.

    A `cache_gb` below `one_token_gb` is not an error here; `load` refuses it.
    """
    knobs = knobs or Knobs()
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.open(checkpoint)
    checkpoint = checkpoint.with_top_k(knobs.top_k)
    if not has_architecture(checkpoint.architecture):
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: mlx-lm has no architecture {checkpoint.architecture}; give a model that it has"
        )
    banks = _banks(checkpoint, plan_bits(checkpoint, knobs).bits)
    least = sum(b.least * b.slot_bytes for b in banks)
    everything = sum(len(b.members) * b.slot_bytes for b in banks)
    resident = checkpoint.resident_bytes(widened=compute_dtype() is not None)
    if knobs.resident_bits is not None:
        from engine.model.resident import resident_bytes_at  # opens the model, which takes mlx-lm a second

        resident = resident_bytes_at(checkpoint, knobs.resident_bits)
    cached = everything if knobs.cache_gb is None else min(everything, knobs.cache_gb * GB)
    return Footprint(
        architecture=checkpoint.architecture,
        fingerprint=checkpoint.fingerprint,
        moe_layers=len(checkpoint.layers),
        experts=sum(layer.experts for layer in checkpoint.layers),
        top_k=checkpoint.top_k,
        expert_bits=checkpoint.expert_bits,
        levels=checkpoint.levels or (),
        one_token_gb=least / GB,
        all_experts_gb=everything / GB,
        resident_gb=resident / GB,
        predicted_peak_gb=(resident + cached) / GB,
    )


def plan_bits(checkpoint: Checkpoint, knobs: Knobs, profile: Profile | None = None) -> BitsPlan:
    """Every expert's bits: a saved plan, or the one that the knobs describe (see `compute_plan`). Raises `KnobError`."""
    if knobs.bits_plan is not None:
        return load_plan(knobs.bits_plan, checkpoint)
    return compute_plan(checkpoint, knobs, profile)


def plan_banks(
    checkpoint: Checkpoint, knobs: Knobs, plan: BitsPlan | None = None, profile: Profile | None = None
) -> list[BankPlan]:
    """The banks of every layer with their slots, for the bits of `plan` (default: of `knobs`, as far as they are known
    without a profile). `profile` is for pinning; without it, who is pinned is arbitrary.

    Raises `KnobError` for a cache below one token's experts, widths that the checkpoint does not have to give, and knobs
    that would have no effect with this cache.
    """
    if knobs.verify_reads and checkpoint.levels is None:
        raise KnobError(
            f"verify_reads has no effect: {checkpoint.name} is no packed store and has no checksums; pack it first "
            "(python -m engine pack), or leave it unset"
        )
    plan = plan or plan_bits(checkpoint, knobs, profile)
    banks = _banks(checkpoint, plan.bits)
    if knobs.cache_gb is None:
        for bank in banks:
            bank.slots = len(bank.members)
        return banks
    least = sum(b.least * b.slot_bytes for b in banks)
    budget = round(knobs.cache_gb * GB) - least
    if budget < 0:
        bits = knobs.expert_bits or checkpoint.expert_bits
        at = f"{bits} bits" if knobs.bits_plan is None else f"{plan.average_bits:.4g} bits on average"
        raise KnobError(
            f"cache_gb={knobs.cache_gb:g} is below one token's experts ({least / GB:.4g} GB for "
            f"{checkpoint.name} at {at}); raise it or lower expert_bits"
        )
    _deal_out(banks, budget, knobs.cache_layer_shape)
    if all(bank.slots == len(bank.members) for bank in banks):
        everything = sum(len(b.members) * b.slot_bytes for b in banks)
        for name in knobs.set_names():
            if name in NEEDS_MISSES:
                raise KnobError(
                    f"{knobs.shown(name)} has no effect with cache_gb={knobs.cache_gb:g}, which holds every "
                    f"expert ({everything / GB:.4g} GB); lower cache_gb or leave {name} unset"
                )
    if knobs.pinned_share:
        _pin(banks, knobs.pinned_share, None if profile is None else profile.uses)
    return banks


def experts_gb(checkpoint: Checkpoint, plan: BitsPlan) -> float:
    """What all experts take in memory with these bits, 10^9 bytes."""
    return sum(len(bank.members) * bank.slot_bytes for bank in _banks(checkpoint, plan.bits)) / GB


def needs_profile(knobs: Knobs) -> bool:
    """Whether bits or slots depend on which experts are used the most."""
    return needs_routing(knobs) or knobs.pinned_share > 0


def _deal_out(banks: list[BankPlan], budget: int, shape: float) -> None:
    """Deal `budget` bytes out slot by slot, to the bank with the smallest share cached. With a `shape` the first layer
    aims at 1 + shape times the mean share and the last at 1 - shape times, the others in a line between them."""
    last = max(1, banks[-1].layer)
    aim = [1 + shape * (1 - 2 * bank.layer / last) for bank in banks]

    def place(i: int) -> tuple[float, int]:
        return banks[i].slots / len(banks[i].members) / aim[i], i

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


def _pin(banks: list[BankPlan], share: float, uses: np.ndarray | None) -> None:
    """Pin each bank's most used members to `share` of its slots; what one token can ask for stays loose."""
    for bank in banks:
        count = min(round(share * bank.slots), bank.slots - bank.least)
        order = np.arange(len(bank.members)) if uses is None else np.argsort(-uses[bank.layer][bank.members], kind="stable")
        if bank.slots < len(bank.members):
            bank.pinned = np.sort(bank.members[order[:count]])
    if not any(len(bank.pinned) for bank in banks):
        slots = max(banks, key=lambda b: b.slots)
        raise KnobError(
            f"pinned_share={share:g} pins nothing: a layer has at most {slots.slots} slots, of which one token needs "
            f"{slots.least}; raise it or cache_gb, or set it to 0"
        )


def _banks(checkpoint: Checkpoint, bits: np.ndarray) -> list[BankPlan]:
    """Per layer one bank, or two with the wider one first, with the slots that one token can ask for; `bits` as in
    `BitsPlan`."""
    banks = []
    for number, layer in enumerate(checkpoint.layers):
        rows = bits[number, : layer.experts, : len(layer.projections)]
        for widths in np.unique(rows, axis=0)[::-1]:
            members = np.flatnonzero((rows == widths).all(axis=1))
            banks.append(_bank(checkpoint, number, members, dict(zip(layer.projections, widths.tolist(), strict=True))))
    return banks


def _bank(checkpoint: Checkpoint, number: int, members: np.ndarray, bits: dict[str, int]) -> BankPlan:
    """The bank of some experts of a layer whose projections have these `bits`."""
    form = checkpoint.layers[number].at(bits)
    requantize = _requantize(form, bits)
    least = min(checkpoint.top_k, len(members))
    return BankPlan(number, form, members, requantize, slot_bytes(form, requantize, compute_dtype()), least, least)


def _requantize(layer: ExpertLayer, widths: dict[str, int]) -> dict[str, Requantize]:
    """Per projection how to get to its width; those that have it stay as they are."""
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
                f"expert_bits={bits}: {layer.block}.{projection} has {columns} columns, no multiple of 32; unset it"
            )
        out[projection] = Requantize(group_size, bits, source)
    return out
