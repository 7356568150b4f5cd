"""Install: replaces every switch of an opened model by a streamed layer.

mlx-lm's lazy arrays of the experts are dropped, so it never reads them. A layer whose experts all fit keeps mlx-lm's own
switch module, which computes on the slots and adds nothing to a token's path.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_unflatten

from engine.cache.pool import SlotPool
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.experts import ExpertLayer
from engine.disk.reader import Reader
from engine.errors import KnobError
from engine.knobs import CACHE_DEPENDENT, Knobs
from engine.model.backend import backend, compute_dtype
from engine.model.open import open_model
from engine.model.routers import router_of
from engine.model.switches import OrderedLinear, StreamingSwitch, is_last, switches
from engine.plan.banks import BankPlan
from engine.routing.record import TraceWriter
from engine.routing.traces.ahead import Ahead, ahead_of_run, experts_predicted
from engine.stats import Stats

from .decode_state import DecodeState
from .gating import gates_of
from .layer import GatedSwitch, StreamedLayer
from .layer_cache import LayerCache
from .prefetch import Prefetch, link
from .window.chain import check_plain
from .window.speculate import SpeculativeWindows

WIDEST = 2.0  # largest prefetch_width that `possible` looks for, as a multiple of top-k


def decode_state_for(source: Checkpoint, knobs: Knobs, stats: Stats | None = None) -> DecodeState:
    """Return the shared state of a checkpoint's streamed layers, with a reader of its files. `stats`: what counts for it."""
    stats = stats or Stats()
    reader = Reader(
        source.files,
        threads=knobs.read_threads,
        block_bytes=knobs.read_block_kib * 1024,
        direct=knobs.io_mode == "direct",
        gbps=knobs.ssd_gbps,
        device=_cuda_driver() if backend() == "cuda" else None,
    )
    experts = max(layer.experts for layer in source.layers)
    return DecodeState(len(source.layers), experts, knobs.evict_half_life, reader, stats)


def _cuda_driver() -> str:
    from engine.disk.cuda_copy import cuda_driver

    return cuda_driver()


def install_layers(
    model: nn.Module, source: Checkpoint, knobs: Knobs, plans: list[BankPlan], state: DecodeState
) -> tuple[list[StreamedLayer], SpeculativeWindows | None]:
    """Replace every switch by a streamed layer; return the layers in order, and their windows if `sync_window` is not 1."""
    modules = dict(model.named_modules())
    layers, replaced, partial = [], [], {}
    for number, (stored, (path, module)) in enumerate(zip(source.layers, switches(model, source), strict=True)):
        if source.levels is None:
            stored.check_against(module)
        pools = [_pool(plan, module, state, verify=knobs.verify_reads) for plan in plans if plan.layer == number]
        layer, switch = _streamed(number, pools, state, module, source.top_k, last=is_last(path, modules))
        layers.append(layer)
        replaced.append((path, switch))
        if not layer.complete:
            partial[path] = layer
    if knobs.sync_window != 1:
        check_plain(model, partial)
    if knobs.prefetch != "off":
        _install_prefetch(partial, modules, source, knobs, state.stats)
    model.update_modules(tree_unflatten(replaced))
    if knobs.sync_window == 1:
        return layers, None
    return layers, SpeculativeWindows(model, partial, knobs.sync_window, state)


def enlarge_layers(
    model: nn.Module, source: Checkpoint, knobs: Knobs, plans: list[BankPlan], state: DecodeState,
    smaller: list[StreamedLayer],
) -> list[StreamedLayer]:  # fmt: skip
    """Replace the layers `smaller` by layers with the slots of `plans`, whose banks are the same; return them in order.

    The reader of `smaller` is closed and no queued graph reads their slots, whose memory is released first.
    """
    modules = dict(model.named_modules())
    inner = [[pool.release() for pool in layer.cache.pools] for layer in smaller]
    layers, replaced = [], []
    for number, (path, _) in enumerate(switches(model, source)):
        own = zip((plan for plan in plans if plan.layer == number), inner[number], strict=True)
        pools = [_pool(plan, module, state, verify=knobs.verify_reads) for plan, module in own]
        last = is_last(path, modules)
        layer, switch = _streamed(number, pools, state, inner[number][0], source.top_k, last=last)
        layers.append(layer)
        replaced.append((path, switch))
    model.update_modules(tree_unflatten(replaced))
    return layers


def _streamed(
    number: int, pools: list[SlotPool], state: DecodeState, module: Any, top_k: int, *, last: bool
) -> tuple[StreamedLayer, Any]:
    """A streamed layer on `pools`, and what replaces the switch `module`."""
    layer = StreamedLayer(number, LayerCache(pools, state.slot_of[number]), state, last=last)
    state.stats.sure[number] = top_k if layer.complete else 0
    stock = layer.complete and len(pools) == 1
    return layer, pools[0].inner if stock else StreamingSwitch(layer, module)


def install_gates(model: nn.Module, source: Checkpoint, knobs: Knobs, layers: list[StreamedLayer]) -> None:
    """Let the gate weights decide what the layers read, if a knob needs it. The model must be loaded, as it is probed.

    Raises `KnobError` if a block does not allow such decisions.
    """
    named = next((name for name in knobs.lossy if name in CACHE_DEPENDENT), None)
    if named is None:
        return
    modules = dict(model.named_modules())
    dims = source.built.hidden
    for layer, (path, replaced) in zip(layers, switches(model, source), strict=True):
        if layer.complete:
            continue
        owner, _, name = path.rpartition(".")
        experts = source.layers[layer.number].experts
        try:
            layer.gates = gates_of(modules[owner], name, dims=dims, experts=experts, top_k=source.top_k, knobs=knobs)
        except ValueError as e:
            raise KnobError(f"{knobs.shown(named)} is not possible for {source.architecture}: {e}; leave it at 0") from e
        modules[owner][name] = GatedSwitch(layer, replaced)


@contextlib.contextmanager
def filling(layers: list[StreamedLayer], plans: list[BankPlan]) -> Iterator[None]:
    """Load the experts that stay, all of a layer that holds every expert and the pinned ones, while the block runs.

    The block may evaluate anything but the slots. Experts that are quantized on arrival need MLX, which other threads cannot
    use, and are loaded after it. An error of the block ends the filling after the reads under way. Raises `ReadError`.
    """
    ended, failed = threading.Event(), []
    experts = {
        pool: pool.members if layer.complete else plan.pinned
        for layer in layers
        for pool, plan in zip(layer.cache.pools, (p for p in plans if p.layer == layer.number), strict=True)
    }
    if not experts:
        yield
        return

    def fill() -> None:
        try:
            for pool in experts:
                if pool.decodes:
                    pool.fill(experts[pool], ended.is_set)
        except BaseException as e:
            failed.append(e)

    thread = threading.Thread(target=fill, name="fill", daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        ended.set()
        raise
    finally:
        thread.join()
    if failed:
        raise failed[0]
    for pool in experts:
        if not pool.decodes:
            pool.fill(experts[pool])


def trace_writer(
    model: nn.Module, source: Checkpoint, knobs: Knobs, layers: list[StreamedLayer], path: str | Path, mode: str,
    ahead: Ahead | None = None,
) -> TraceWriter:  # fmt: skip
    """Return the writer of a trace of a model with its `layers` installed; without `ahead` it records what they predict."""
    found = [place for place, _ in switches(model, source)]
    ends = is_last(found[-1], dict(model.named_modules()))
    partial = [layer.number for layer in layers if not layer.complete]
    ahead = ahead or ahead_of_run(knobs, partial, source.top_k)
    return TraceWriter(model, source, found, ends, path, mode, lossy=knobs.lossy, ahead=ahead)


def _pool(plan: BankPlan, module: Any, state: DecodeState, *, verify: bool) -> SlotPool:
    return SlotPool(
        plan.form,
        state.layers[plan.layer],
        state.slot_of[plan.layer],
        plan.members,
        plan.slots,
        _at_width(module, plan),
        plan.requantize,
        state.reader,
        compute=compute_dtype(),
        stats=state.stats,
        pinned=plan.pinned,
        verify=verify,
    )


def _install_prefetch(
    layers: dict[str, StreamedLayer], modules: dict[str, Any], source: Checkpoint, knobs: Knobs, stats: Stats
) -> None:
    """Let the layers predict each other. `layers` maps switch paths to the layers that may miss an expert."""
    wide = experts_predicted(knobs.prefetch_width, source.top_k)
    predictors = []
    for path, layer in layers.items():
        owner, _, name = path.rpartition(".")
        router = router_of(modules[owner], name, source.top_k, wide, source.layers[layer.number])
        if router is None:
            raise KnobError(
                f"prefetch={knobs.prefetch} is not possible for {source.architecture}: the router of "
                f"{type(modules[owner]).__name__} cannot choose {wide} experts ahead of time; use prefetch=off"
            )
        layer.prefetch = Prefetch(router, layer.guess, stats)
        predictors.append(layer.prefetch)
    link(predictors, knobs.prefetch_depth)


def _at_width(module: Any, plan: BankPlan) -> Any:
    """Return a copy of a switch whose projections have the bank's width; the slot pool sets its weights."""
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


@dataclass(frozen=True)
class Possible:
    """`windows` and `prefetch` say why a `sync_window` above 1 and `prefetch=stale_gate` are not possible, in one line; they
    are empty if they are. `widest` is the largest `prefetch_width` up to `WIDEST`."""

    windows: str
    prefetch: str
    widest: float


def possible(checkpoint: Checkpoint) -> Possible:
    """Return what the model allows. Opens mlx-lm's module once, which takes 12 s for a model of 1 T parameters."""
    model = open_model(checkpoint)
    found = switches(model, checkpoint)
    windows = ""
    try:
        check_plain(model, [path for path, _ in found])
    except KnobError as e:
        windows = str(e).partition("; use")[0]
    modules = dict(model.named_modules())
    blocks: dict[type, tuple[Any, str, ExpertLayer]] = {}  # one of each kind
    for (path, _), layer in zip(found, checkpoint.layers, strict=True):
        owner, _, name = path.rpartition(".")
        blocks.setdefault(type(modules[owner]), (modules[owner], name, layer))
    widest = 0.0
    for width in (WIDEST, 1.0):
        wide = experts_predicted(width, checkpoint.top_k)
        routers = (router_of(block, name, checkpoint.top_k, wide, layer) for block, name, layer in blocks.values())
        if all(router is not None for router in routers):
            widest = width
            break
    prefetch = "" if widest else f"no router of {checkpoint.architecture} can be run ahead of time"
    return Possible(windows, prefetch, widest or 1.0)
