"""Install: replaces every switch of an opened model by a stream.

mlx-lm's lazy arrays of the experts are dropped, so it never reads them. A layer whose experts all fit keeps mlx-lm's own
switch module, which computes on the slots and adds nothing to a token's path.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_unflatten

from engine.cache.eviction import SlotTable
from engine.cache.slots import Bank
from engine.checkpoint.checkpoint import Checkpoint
from engine.disk.reader import Reader
from engine.errors import KnobError
from engine.knobs import CACHE_DEPENDENT, Knobs
from engine.model.backend import backend, compute_dtype
from engine.model.switches import OrderedLinear, StreamingSwitch, is_last, switches
from engine.plan.banks import BankPlan
from engine.stats import Stats

from .gating import gates_of
from .layer import GatedSwitch, LayerStream, Run
from .prefetch import prefetch_of
from .speculate import Windows


def run_for(source: Checkpoint, knobs: Knobs) -> Run:
    stats = Stats()
    reader = Reader(
        source.files,
        stats,
        threads=knobs.read_threads,
        block_bytes=knobs.read_block_kib * 1024,
        direct=knobs.io_mode == "direct",
        gbps=knobs.ssd_gbps,
        deliver=_device_copy() if backend() == "cuda" else None,
    )
    experts = max(layer.experts for layer in source.layers)
    return Run(len(source.layers), experts, knobs.evict_half_life, reader, stats)


@functools.cache
def _device_copy() -> Any:
    from engine.disk.cuda_copy import DeviceCopy

    return DeviceCopy()


def put_streams(
    model: nn.Module, source: Checkpoint, knobs: Knobs, plans: list[BankPlan], run: Run
) -> tuple[list[LayerStream], Windows | None]:
    """Put a stream in the place of every switch: the streams in the order of the layers, and their windows if they check
    several at once. A layer whose experts all fit keeps mlx-lm's own module, on the slots."""
    modules = dict(model.named_modules())
    streams, replaced, asking = [], [], []
    for number, (layer, (path, module)) in enumerate(zip(source.layers, switches(model, source), strict=True)):
        if source.levels is None:
            layer.check_against(module)
        banks = []
        for plan in (p for p in plans if p.layer == number):
            policy, slot_of = run.policy.layer(number), run.slot_of[number]
            table = SlotTable(plan.members, plan.slots, policy, slot_of, plan.pinned)
            inner = _at_width(module, plan)
            banks.append(
                Bank(
                    plan.form, table, inner, plan.requantize, compute=compute_dtype(), stats=run.stats, number=number,
                    verify=knobs.verify_reads,
                )
            )  # fmt: skip
        stream = LayerStream(number, banks, run, last=is_last(path, modules))
        streams.append(stream)
        run.stats.layers[number].sure = source.top_k if stream.complete else 0
        stock = stream.complete and len(banks) == 1
        replaced.append((path, banks[0].inner if stock else StreamingSwitch(stream)))
        if not stream.complete:
            asking.append((stream, modules[path.rpartition(".")[0]], path))
    if knobs.prefetch != "off":
        why = prefetch_of(
            [(stream, block, path.rpartition(".")[2]) for stream, block, path in asking],
            depth=knobs.prefetch_depth, top_k=source.top_k, width=knobs.prefetch_width, stats=run.stats,
        )  # fmt: skip
        if why is not None:
            raise KnobError(f"prefetch={knobs.prefetch} is not possible for {source.architecture}: {why}; use off")
    model.update_modules(tree_unflatten(replaced))
    if knobs.sync_window == 1:
        return streams, None
    return streams, Windows(model, {path: stream for stream, _, path in asking}, knobs.sync_window, run)


def put_gates(model: nn.Module, source: Checkpoint, knobs: Knobs, streams: list[LayerStream]) -> None:
    """Have the gate weights decide what the streams read, where a knob says so. The model is loaded: its blocks are asked.

    Raises `KnobError` if they cannot be.
    """
    named = next((name for name in knobs.lossy if name in CACHE_DEPENDENT), None)
    if named is None:
        return
    modules = dict(model.named_modules())
    dims = int(source.text_config.get("hidden_size", 0))
    for stream, (path, _) in zip(streams, switches(model, source), strict=True):
        if stream.complete:
            continue
        owner, _, name = path.rpartition(".")
        try:
            stream.gates = gates_of(
                modules[owner], name, dims=dims, experts=source.layers[stream.number].experts, top_k=source.top_k,
                knobs=knobs,
            )  # fmt: skip
        except ValueError as e:
            raise KnobError(f"{knobs.shown(named)} is not possible for {source.architecture}: {e}; leave it at 0") from e
        modules[owner][name] = GatedSwitch(stream)


def fill(streams: list[LayerStream], plans: list[BankPlan], run: Run) -> None:
    """Load what stays: layers whose experts all fit, and the pinned experts."""
    for stream in streams:
        if stream.complete:
            stream.fill()
        else:
            for bank, plan in zip(stream.banks, (p for p in plans if p.layer == stream.number), strict=True):
                bank.fill(plan.pinned, run.reader)


def _at_width(module: Any, plan: BankPlan) -> Any:
    """A copy of a switch whose projections have the bank's width; its weights are set by the bank."""
    inner = copy.copy(module)
    for name in plan.form.projections:
        old, new, order = module[name], plan.requantize.get(name), plan.form.order(name)
        how = plan.form.quantization(name) if plan.form.records is not None else None
        if new is not None:
            how = {"group_size": new.group_size, "bits": new.bits, "mode": "affine"}
        if how is None:
            inner[name] = copy.copy(old)
        else:
            inner[name] = OrderedLinear(how, "bias" in old, order)
    return inner
