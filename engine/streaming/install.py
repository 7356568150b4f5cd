"""The model: mlx-lm's own, opened lazily, with a stream in the place of every switch.

mlx-lm never reads an expert's weights then: its lazy arrays of them are dropped. A layer whose experts all fit keeps
mlx-lm's own switch module, computing on the slots, and costs nothing on the path of a token.
"""

from __future__ import annotations

import copy
import functools
import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchMLP
from mlx_lm.utils import _get_classes, load_model

from engine.cache.eviction import SlotTable
from engine.cache.slots import STORED, Bank
from engine.checkpoint.checkpoint import TOP_K_KEYS, Checkpoint
from engine.disk.reader import Reader
from engine.errors import CheckpointError, KnobError, first_line
from engine.knobs import CACHE_DEPENDENT, Knobs
from engine.model.backend import backend
from engine.plan.banks import BankPlan, compute_dtype
from engine.stats import Stats

from .gating import asking, gates_of
from .layer import GatedSwitch, LayerStream, Run, StreamingSwitch
from .prefetch import prefetch_of
from .speculate import Windows


def open_model(source: Checkpoint) -> nn.Module:
    try:
        classes = functools.partial(_without_experts, source) if source.store is not None else _get_classes
        config = {key: source.config[key] for key in (*TOP_K_KEYS, "text_config") if key in source.config}  # of the knob
        model, _ = load_model(source.path, lazy=True, model_config=config, get_model_classes=classes)
        model(mx.array([[0]]), cache=make_prompt_cache(model))  # computes nothing, but here shapes show that do not fit
    except Exception as e:  # its classes raise what comes of a wrong config.json, ZeroDivisionError for one
        raise CheckpointError(
            f"checkpoint {source.path}: mlx-lm cannot open {source.architecture} ({first_line(e)}); "
            "give a model of an architecture that mlx-lm has, complete"
        ) from e
    return model


def _without_experts(source: Checkpoint, config: dict[str, Any]) -> tuple[type[nn.Module], type]:
    """mlx-lm's classes for a store: the switches' weights, which no file that mlx-lm opens has, stay as they were made; they
    are never computed. All others must be there.

    What mlx-lm renames and converts on the way may depend on names of experts' tensors being there. Zeros under the names
    that the checkpoint had them by go that way with the others, and are dropped at its end."""
    assert source.store is not None
    tensors = source.store.source_tensors
    model_class, args_class = _get_classes(config)

    class Opened(model_class):  # type: ignore[misc, valid-type]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            if not hasattr(super(), "sanitize"):
                return weights
            zeros: dict[str, mx.array] = {}
            for t in tensors:
                value = mx.zeros(t.shape, STORED.get(t.dtype, mx.uint8))  # FP8 comes as bytes
                zeros |= dict.fromkeys([t.name.replace("*", str(n)) for n in range(t.experts)] or [t.name], value)
            cleaned = super().sanitize({**zeros, **weights})
            paths = self._switch_paths()
            return {name: value for name, value in cleaned.items() if not name.startswith(paths)}

        def load_weights(self, weights: Any, strict: bool = True) -> Any:
            parameters: Any = tree_flatten(self.parameters())
            made = [(name, value) for name, value in parameters if name.startswith(self._switch_paths())]
            return super().load_weights([*made, *weights], strict)

        def _switch_paths(self) -> tuple[str, ...]:
            return tuple(f"{path}." for path, m in self.named_modules() if isinstance(m, SwitchGLU | SwitchMLP))

    return Opened, args_class


def lay_out_for_cpu(model: nn.Module) -> None:
    """Keep matrices column by column in memory, the view of them as it was.

    MLX multiplies float32 on Linux's CPU with the reference BLAS, which sums the products in the same order for either
    layout, but 1.3 times (one token) to 2.8 times (a prefill) as fast when what it calls B is not transposed.
    """
    for module in model.modules():
        weight = None if isinstance(module, nn.Embedding) else module.get("weight")
        if weight is not None and weight.ndim == 2 and weight.dtype == mx.float32:
            module.weight = mx.contiguous(weight.T).T
            mx.eval(module.weight)


def check_top_k(model: nn.Module, source: Checkpoint) -> None:
    """Raises `KnobError` unless the model's routers choose as many experts as config.json says, the knob included."""
    modules, dims = dict(model.named_modules()), int(source.text_config.get("hidden_size", 0))
    for path, _ in switches(model, source):
        owner, _, name = path.rpartition(".")
        try:
            chosen = asking(modules[owner], name, weigh=False)(mx.zeros((1, 1, dims))).ids.shape[-1]
        except Exception:  # whatever a block of a kind unknown to us raises
            chosen = 0
        if not 0 < chosen <= source.top_k:
            raise KnobError(
                f"top_k={source.top_k} is not possible for {source.architecture}: {type(modules[owner]).__name__} does not "
                "choose so many experts; leave it unset"
            )


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


def switches(model: nn.Module, source: Checkpoint) -> list[tuple[str, Any]]:
    """Path and module of every layer's switch, in the order of `source.layers`.

    Raises `CheckpointError` if they are not one to one.
    """
    found: dict[int, tuple[str, Any]] = {}
    for path, module in model.named_modules():
        if isinstance(module, SwitchGLU | SwitchMLP | StreamingSwitch):
            layer = source.find(path.rpartition(".")[0])
            if layer is None:
                raise CheckpointError(
                    f"checkpoint {source.path}: the experts of {path} are not in a layout that can be streamed"
                )
            found[source.layers.index(layer)] = (path, module)
    if len(found) != len(source.layers):
        raise CheckpointError(
            f"checkpoint {source.path}: {len(source.layers)} layers of experts, but the model has {len(found)}"
        )
    return [found[number] for number in range(len(found))]


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
        stream = LayerStream(number, banks, run, last=is_last(path, modules), lowbit=knobs.cold_lowbit > 0)
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


def is_last(path: str, modules: dict[str, Any]) -> bool:
    """Whether the switch at `path` is in the last of the model's layers: nothing but the logits depends on it."""
    layer = re.match(r"(.*\blayers)\.(\d+)\.", path)
    return layer is not None and f"{layer[1]}.{int(layer[2]) + 1}" not in modules


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


class OrderedLinear(QuantizedSwitchLinear):
    """mlx-lm's switch projection, on weights whose columns lie in another `order` within blocks (None: in their own)."""

    def __init__(self, how: dict[str, Any], bias: bool, order: np.ndarray | None) -> None:
        super().__init__(how["group_size"], 1, 1, bias=bias, **how)
        self._order = None if order is None else mx.array(order.astype(np.uint32))

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        if self._order is not None:
            x = x.reshape(*x.shape[:-1], -1, self._order.size)[..., self._order].reshape(x.shape)
        return super().__call__(x, indices, sorted_indices=sorted_indices)
