"""Sizes: the banks that a replay needs, of a checkpoint, of a shape without files, or of sizes alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.experts import ExpertTensor
from engine.errors import KnobError
from engine.knobs import CACHE_DEPENDENT, Knobs
from engine.plan.banks import Bank, BankPlan, give_slots, needs_profile, plan_banks, plan_bits
from engine.routing.profile import Profile

# File and offset of every expert of the layer, bytes, and the number of the codes that this is a stream of, or -1.
Range = tuple[np.ndarray, np.ndarray, int, int]


@dataclass(frozen=True)
class Sizes:
    """A model of `layers` layers with `experts` experts each, of which a token uses `top_k`, at one width.

    An expert has `expert_bytes` on the disk, in one piece, and takes `slot_bytes` in memory (0: as many).
    """

    layers: int
    experts: int
    top_k: int
    expert_bytes: int
    slot_bytes: int = 0
    name: str = "the model"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, experts of a layer, and top-k."""
        return self.layers, self.experts, self.top_k


@dataclass(kw_only=True)
class ReadBank(Bank):
    """A bank with what is read of an expert. `quantized`: its experts are quantized again when they arrive."""

    ranges: list[Range] = field(repr=False)
    experts: int  # of the layer
    quantized: bool = False

    @property
    def expert_bytes(self) -> int:
        return sum(nbytes for _, _, nbytes, _ in self.ranges)


def shape_of(model: Checkpoint | Sizes) -> tuple[int, int, int]:
    """Layers, experts of the largest layer, and top-k of a model."""
    if isinstance(model, Sizes):
        return model.shape
    return len(model.layers), max(layer.experts for layer in model.layers), model.top_k


def banks_of(model: Checkpoint | Sizes, knobs: Knobs, profile: Callable[[], Profile]) -> list[ReadBank]:
    """Return every layer's banks with their slots. Raises `KnobError` as `plan_banks` does.

    `profile` is called if bits or pinned experts depend on how often each expert is used.
    """
    if isinstance(model, Sizes):
        return _of_sizes(model, knobs, profile)
    routing = profile() if needs_profile(knobs) else None
    plans = plan_banks(model, knobs, plan_bits(model, knobs, routing), routing)
    return [_read(plan, stored=bool(model.files)) for plan in plans]


def _of_sizes(sizes: Sizes, knobs: Knobs, profile: Callable[[], Profile]) -> list[ReadBank]:
    widths = [name for name in knobs.lossy if name not in (*CACHE_DEPENDENT, "resident_bits")]
    if widths:
        raise KnobError(
            f"{knobs.shown(widths[0])} cannot be replayed from the sizes of one width; give a model, or other sizes"
        )
    nowhere = np.zeros(sizes.experts, np.int32), np.zeros(sizes.experts, np.int64), sizes.expert_bytes, -1
    slot_bytes = sizes.slot_bytes or sizes.expert_bytes
    banks = [
        ReadBank(
            layer=layer, members=np.arange(sizes.experts), slot_bytes=slot_bytes, least=sizes.top_k, slots=sizes.top_k,
            ranges=[nowhere], experts=sizes.experts,
        )
        for layer in range(sizes.layers)
    ]  # fmt: skip
    give_slots(banks, knobs, sizes.name, profile().uses if needs_profile(knobs) else None)
    return banks


def _read(plan: BankPlan, *, stored: bool) -> ReadBank:
    return ReadBank(
        layer=plan.layer, members=plan.members, slot_bytes=plan.slot_bytes, least=plan.least, slots=plan.slots,
        pinned=plan.pinned, ranges=_ranges(plan, stored), experts=plan.form.experts, quantized=bool(plan.requantize),
    )  # fmt: skip


def _ranges(plan: BankPlan, stored: bool) -> list[Range]:
    """What is read of an expert. If nothing is `stored`, its tensors are taken to follow one another."""
    parts: list[tuple[ExpertTensor, int]] = []
    for number, tensor in enumerate(plan.form.tensors):
        joined = number if tensor.parts and tensor.projection not in plan.requantize else -1
        parts += [(part, joined) for part in tensor.parts or (tensor,)]
    if stored:
        return [(part.file.astype(np.int32), part.offset.astype(np.int64), part.nbytes, of) for part, of in parts]
    file, offset = np.zeros(plan.form.experts, np.int32), np.zeros(plan.form.experts, np.int64)
    return [(file, offset, sum(part.nbytes for part, _ in parts), -1)]
