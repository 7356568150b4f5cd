"""Staging: the memory of experts on their way from the disk into slots.

Bytes that a slot holds as stored are read straight into it. Experts that are widened, joined from streams or requantized
have a buffer of whole pages each until they are converted; the reader keeps up to `core.MOST_SPARE` buffers for later loads.
Direct reads and copies to a GPU pass through a buffer of each reader thread and of the thread that waits, which reads too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engine.cache.requests import FILL_AT_ONCE
from engine.cache.slot_layout import goes_straight
from engine.checkpoint.checkpoint import Checkpoint
from engine.disk.direct import direct_unit
from engine.knobs import Knobs
from engine.model.backend import backend, compute_dtype
from engine.native import core

from ..banks import BankPlan

FLOAT = 4  # bytes of a float32


def staging_bytes(checkpoint: Checkpoint, knobs: Knobs, banks: Sequence[BankPlan], tokens: int) -> int:
    """Return the bytes of experts in flight during a prefill pass over `tokens` tokens, and of the threads' buffers.

    `banks` have their slots. The largest layer counts, since the layers of a prefill follow each other.
    """
    if not banks:
        return 0
    of_layers: dict[int, int] = {}
    for bank in banks:
        of_layers[bank.layer] = of_layers.get(bank.layer, 0) + _bank_bytes(checkpoint, bank, tokens)
    blocks = 0
    if knobs.io_mode == "direct" or backend() == "cuda":
        largest = max(bank.form.expert_bytes for bank in banks)
        blocks = (knobs.read_threads + 1) * (min(knobs.read_block_kib * 1024, largest) + 2 * direct_unit())
    sizes = {_expert_bytes(bank) for bank in banks} - {0}
    # Buffers of one size are those of the layer that needs most.
    spare = core.MOST_SPARE * max(sizes) if len(sizes) > 1 else 0
    return max(*of_layers.values(), spare) + _ahead_bytes(checkpoint, knobs, banks) + blocks


def _bank_bytes(checkpoint: Checkpoint, bank: BankPlan, tokens: int) -> int:
    """Bytes for one layer's experts of one width in a prefill pass, and while the slots are filled."""
    complete = bank.slots >= len(bank.members)
    needed = min(len(bank.members), tokens * checkpoint.top_k)
    loose = bank.slots - len(bank.pinned)
    at_once = 0 if complete else needed if needed <= loose else min(needed, 2 * max(1, loose // 2))
    filled = min(FILL_AT_ONCE, len(bank.members) if complete else len(bank.pinned))
    total = max(at_once, filled) * _expert_bytes(bank)
    if bank.requantize:  # one expert at a time: its projections in floats, and one of them unpacked
        floats = [FLOAT * math.prod(t.shape) for t in bank.form.tensors if t.projection in bank.requantize]
        total += sum(floats) + max(floats)
    if at_once and needed > loose:  # outputs of the batches, and the same in the tokens' order
        total += 2 * tokens * checkpoint.top_k * bank.form.input_dims(bank.form.projections[0]) * FLOAT
    return total


def _ahead_bytes(checkpoint: Checkpoint, knobs: Knobs, banks: Sequence[BankPlan]) -> int:
    """Bytes of experts that are read for later layers."""
    layers, experts = 0, float(checkpoint.top_k)
    if knobs.prefetch != "off":
        layers, experts = knobs.prefetch_depth, math.ceil(knobs.prefetch_width * checkpoint.top_k)
    elif knobs.sync_window != 1:
        layers = len(checkpoint.layers) if knobs.sync_window < 1 else knobs.sync_window
    return math.ceil(layers * experts) * max(map(_expert_bytes, banks))


def _expert_bytes(bank: BankPlan) -> int:
    """Bytes of the buffer that one expert's tensors pass through; 0 if all of them are read straight into their slot."""
    compute = compute_dtype()
    return sum(t.nbytes for t in bank.form.tensors if not goes_straight(t, bank.requantize, compute))
