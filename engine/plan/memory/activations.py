"""Activations: the memory of keys and values, and of one prefill pass, from the graph that mlx-lm's model builds.

The pass is the last full chunk of a context. mlx-lm's own module is called on lazy arrays: MLX infers every shape and
computes nothing, so this takes a fraction of a second and little memory. The graph has each array's size, and replaying its
order of computation gives the bytes that are alive at once. It holds for any architecture: latent attention, sliding
windows, states of a fixed size, fused or unfused attention, and vocabularies of any size need no formula.

Two approximations: MLX computes independent branches in a slightly different order, and a kernel's own scratch memory is not
counted.
"""

from __future__ import annotations

import functools
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.models.cache import make_prompt_cache

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import first_line
from engine.model.backend import compute_dtype
from engine.model.open import open_model
from engine.model.resident import quantize_resident
from engine.model.switches import switches

from .export import exported
from .known import known_pass, pass_file, store_pass

# Primitives whose output shares its input's memory. A reshape copies if its input is not contiguous.
VIEWS = {
    "Transpose", "Slice", "Split", "Broadcast", "ExpandDims", "Squeeze", "Unflatten", "AsStrided", "StopGradient", "View",
}  # fmt: skip
RESHAPES = {"Flatten", "Reshape", "Contiguous"}
# Primitives that write into their first input when nothing else needs it. Elementwise ones could, too, but MLX queues tens
# of operations ahead, and a queued operation keeps its inputs, so that they rarely do.
IN_PLACE = {"SliceUpdate", "DynamicSliceUpdate", "Scatter", "ScatterAxis"}
SHORT = (16, 32)  # tokens
GROWS = 1.15  # from the shorter to the longer of them; other graphs gain at most 6 % with 32 tokens, a recurrence 29 %


@dataclass(frozen=True)
class PassMemory:
    """Bytes of a context's keys and values or states, and of what one pass over its last chunk holds besides them.

    `loading`: the second copy of the largest weight while it is widened on loading, 0 on a GPU; `loading_streamed`: without
    the routed experts.
    """

    kv: int
    activations: int
    loading: int = 0
    loading_streamed: int = 0


NAMES = tuple(f.name for f in fields(PassMemory))


def pass_memory(checkpoint: Checkpoint, *, context: int, chunk: int, resident_bits: int | None = None) -> PassMemory:
    """Return the memory of a prefill in chunks of at most `chunk` tokens, up to `context` tokens; of logits too.

    Opens the model once for each set of arguments, reads no weights, and stores the result in the user's cache folder.
    Raises `CheckpointError` if mlx-lm cannot open the model.
    """
    known = (checkpoint.header_digest, checkpoint.top_k, resident_bits, context, min(chunk, context))
    if known in _KNOWN:
        return _KNOWN[known]
    file = pass_file(known)
    if (stored := known_pass(file, NAMES)) is not None:
        _KNOWN[known] = PassMemory(**stored)
    else:
        model = _model_of(checkpoint, resident_bits)
        traced = True
        try:
            memory = trace_pass(model.module, context, chunk, model.graph)
        except ValueError as e:  # MLX cannot export each primitive
            print(
                f"note: activations of {checkpoint.name} are predicted from its logits alone ({first_line(e)}); the "
                "predicted memory may be too low",
                file=sys.stderr,
            )
            traced = False
            memory = _without_graph(model.module, checkpoint.built.vocabulary, context, chunk)
        _KNOWN[known] = replace(memory, loading=model.loading, loading_streamed=model.loading_streamed)
        if traced:
            store_pass(file, asdict(_KNOWN[known]))
    return _KNOWN[known]


@dataclass
class Graph:
    """What is known of a model's graphs. `grows`: the number of operations follows that of the tokens; None before the
    first one."""

    grows: bool | None = None


@dataclass(frozen=True)
class _Model:
    """A model with placeholders for its weights, and its largest weights as in `PassMemory`."""

    module: nn.Module
    loading: int
    loading_streamed: int
    graph: Graph = field(default_factory=Graph)


def _model_of(checkpoint: Checkpoint, resident_bits: int | None) -> _Model:
    """The model of a checkpoint; opening one of 1 T parameters takes 12 s, so the last few are kept."""
    key = (checkpoint.path, checkpoint.header_digest, checkpoint.top_k, resident_bits)
    if key not in _MODELS:
        model = open_model(checkpoint)
        if (dtype := compute_dtype()) is not None:
            model.set_dtype(dtype)
        if resident_bits is not None:
            quantize_resident(model, checkpoint, resident_bits)
        sizes: dict[str, int] = {}
        if dtype is not None:
            weights: Any = tree_flatten(model.parameters())
            sizes = {name: value.nbytes for name, value in weights if value.dtype == dtype}
        experts = tuple(f"{path}." for path, _ in switches(model, checkpoint))
        streamed = (size for name, size in sizes.items() if not name.startswith(experts))
        _hold_places(model)
        while len(_MODELS) >= KEPT_MODELS:
            del _MODELS[next(iter(_MODELS))]
        _MODELS[key] = _Model(model, max(sizes.values(), default=0), max(streamed, default=0))
    return _MODELS[key]


def _hold_places(model: nn.Module) -> None:
    """Replace the weights by lazy zeros, which hold neither files nor memory, and compute the arrays that are no weights."""
    model.apply(lambda weight: mx.zeros(weight.shape, weight.dtype))
    for module in model.modules():
        own = [value for name, value in module.items() if name.startswith("_") and isinstance(value, mx.array)]
        mx.eval(own)


_KNOWN: dict[tuple[Any, ...], PassMemory] = {}  # a search asks for the same few passes again and again
_MODELS: dict[tuple[Any, ...], _Model] = {}
KEPT_MODELS = 4


def _without_graph(model: nn.Module, vocabulary: int, context: int, chunk: int) -> PassMemory:
    """The memory of keys and values, grown by their caches' own rules, and of the logits."""
    caches = make_prompt_cache(model)
    model(mx.zeros((1, 1), mx.int32), cache=caches)
    _feed(caches, context - 1, chunk)
    kv = sum(owner[key].nbytes for owner, key in _arrays(caches))
    return PassMemory(kv, 2 * 4 * vocabulary * min(chunk, context))


def trace_pass(model: nn.Module, context: int, chunk: int, graph: Graph | None = None) -> PassMemory:
    """Return the memory of the last chunk of a context of `context` tokens. The model's arrays may be lazy.

    A graph that grows with the number of tokens (a recurrence computed token by token) takes seconds to build. Its memory is
    linear in them, and is extrapolated from two short chunks. `graph` is kept from one call for a model to the next.
    """
    tokens, graph = min(chunk, context), graph or Graph()
    if tokens > 2 * SHORT[1] and graph.grows is not False:
        short = [_trace(model, context, n, chunk) for n in SHORT]
        graph.grows = len(short[1][0]) > GROWS * len(short[0][0])
        if graph.grows:
            low, high = (_alive(*traced) for traced in short)
            scale = (tokens - SHORT[1]) / (SHORT[1] - SHORT[0])
            return PassMemory(
                round(high.kv + max(0, high.kv - low.kv) * scale),
                round(high.activations + max(0, high.activations - low.activations) * scale),
            )
    return _alive(*_trace(model, context, tokens, chunk))


def _trace(model: nn.Module, context: int, tokens: int, chunk: int) -> tuple[list[dict[str, Any]], int]:
    """The graph of a context's last `tokens` tokens, and the number of its weights."""
    before = context - tokens
    caches = make_prompt_cache(model)
    if before:
        model(mx.zeros((1, 1), mx.int32), cache=caches)
        _feed(caches, before - 1, chunk)
    names, weights = zip(*tree_flatten(model.parameters()), strict=True)
    places = list(_arrays(caches))
    states = [owner[key] for owner, key in places]

    def run(ids: mx.array, *given: mx.array) -> list[mx.array]:
        model.update(tree_unflatten(list(zip(names, given[: len(names)], strict=True))))
        for (owner, key), state in zip(places, given[len(names) :], strict=True):
            owner[key] = state
        logits = model(ids, cache=caches)
        return [logits.astype(mx.float32), *(owner[key] for owner, key in _arrays(caches))]

    ids = mx.zeros((1, tokens), mx.int32)
    try:
        try:
            graph = exported(run, [ids, *weights, *states], compiled=True)
        except ValueError:  # some compiled functions take arrays that are no arguments
            graph = exported(run, [ids, *weights, *states], compiled=False)
    finally:
        model.update(tree_unflatten(list(zip(names, weights, strict=True))))
    return graph, len(weights)


def _feed(caches: Any, tokens: int, chunk: int) -> None:
    """Let caches of keys and values grow by `tokens` tokens, by their own rules. States of a fixed size stay."""
    for cache in _flat(caches):
        keys, values = (getattr(cache, name, None) for name in ("keys", "values"))
        if not (isinstance(keys, mx.array) and isinstance(values, mx.array) and keys.ndim == values.ndim == 4):
            continue
        last = min(tokens, chunk)
        for count in (tokens - last, last):
            if count:
                new = (mx.zeros((*old.shape[:2], count, old.shape[3]), old.dtype) for old in (keys, values))
                cache.update_and_fetch(*new)


def _flat(caches: Any) -> Iterator[Any]:
    for cache in caches:
        if hasattr(cache, "caches"):
            yield from _flat(cache.caches)
        else:
            yield cache


def _arrays(caches: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the places of all arrays in caches: a mapping or list, and the key in it."""
    for cache in _flat(caches):
        if cache is None:
            continue
        for name, value in vars(cache).items():
            if isinstance(value, mx.array):
                yield vars(cache), name
            elif isinstance(value, list):
                yield from ((value, i) for i, item in enumerate(value) if isinstance(item, mx.array))


class _Buffers:
    """The memory of a graph's arrays while it is replayed. Arrays that are views share the buffer of their source."""

    def __init__(self) -> None:
        self.of: dict[str, str] = {}  # array -> the array that owns its buffer
        self.nbytes: dict[str, int] = {}
        self.users: Counter[str] = Counter()  # uses that are still to come, of each buffer
        self.strided: set[str] = set()
        self.alive = 0

    def add(self, name: str, nbytes: int) -> None:
        self.of[name], self.nbytes[name] = name, nbytes
        self.alive += nbytes

    def share(self, name: str, source: str) -> None:
        self.of[name] = self.of.get(source, source)

    def drop_unused(self, name: str) -> None:
        if self.users[name] == 0:
            self.alive -= self.nbytes.pop(name, 0)


def _alive(graph: list[dict[str, Any]], weights: int) -> PassMemory:
    """Replay a graph whose inputs are the tokens, `weights` weights and the caches' arrays; return what is alive at most.

    Weights are not counted. The outputs are the logits and the caches' new arrays.
    """
    by_type = {entry["type"]: entry for entry in graph if entry["type"] != "primitive"}
    inputs, outputs = by_type["inputs"]["inputs"], by_type["outputs"]["outputs"]
    steps = [entry for entry in graph if entry["type"] == "primitive"]
    uses: Counter[str] = Counter(array[0] for step in steps for array in step["inputs"])
    uses.update(array[0] for array in outputs)
    buffers = _Buffers()
    for name, *_ in [*inputs[: 1 + weights], *by_type["constants"]["constants"]]:
        buffers.share(name, "weights")
    for array in inputs[1 + weights :]:
        buffers.add(array[0], _nbytes(array))
        buffers.users[array[0]] += uses[array[0]]
    most = buffers.alive
    for step in steps:
        _compute(step, buffers, uses)
        most = max(most, buffers.alive)
        owners = [buffers.of.get(array[0], "") for array in step["inputs"]]
        for name in owners:
            buffers.users[name] -= 1
        for name in set(owners):
            buffers.drop_unused(name)
        for array in step["outputs"]:
            if array[0] in buffers.nbytes:
                buffers.drop_unused(array[0])
    kept = {buffers.of.get(array[0], array[0]) for array in outputs[1:]}
    kv = sum(buffers.nbytes.get(name, 0) for name in kept)
    return PassMemory(kv, max(0, most - kv))


def _compute(step: dict[str, Any], buffers: _Buffers, uses: Counter[str]) -> None:
    """Give each output of a step its own memory, or an input's."""
    name, inputs, outputs = step["name"], step["inputs"], step["outputs"]
    source = inputs[0][0] if inputs else ""
    view = name in VIEWS or (name in RESHAPES and source not in buffers.strided)
    for out in outputs:
        nbytes = _nbytes(out)
        if view and source in buffers.of:
            buffers.share(out[0], source)
            if _strided(name, inputs[0][1], out[1]) or source in buffers.strided:
                buffers.strided.add(out[0])
        elif name in IN_PLACE and (reused := _reusable(inputs, nbytes, buffers)) is not None:
            buffers.share(out[0], reused)
        else:
            buffers.add(out[0], nbytes)
        owner = buffers.of[out[0]]
        buffers.users[owner] += uses[out[0]]


def _reusable(inputs: list[Any], nbytes: int, buffers: _Buffers) -> str | None:
    """The input whose buffer has the right size and no use but this one."""
    for array in inputs[:1]:
        owner = buffers.of.get(array[0], "")
        here = sum(buffers.of.get(other[0], "") == owner for other in inputs)
        if buffers.nbytes.get(owner) == nbytes and buffers.users[owner] == here and array[0] not in buffers.strided:
            return str(array[0])
    return None


def _strided(name: str, before: tuple[int, ...], after: tuple[int, ...]) -> bool:
    """Whether a view of a contiguous array has gaps or another order of its dimensions."""
    old, new = ([size for size in shape if size != 1] for shape in (before, after))
    if name in ("Transpose", "AsStrided"):
        return old != new
    if name in ("Slice", "Split"):
        return old[1:] != new[1:] and math.prod(old) != math.prod(new)
    return name == "Broadcast" and math.prod(old) != math.prod(new)


@functools.cache
def _size(dtype: mx.Dtype) -> int:
    return dtype.size


def _nbytes(array: Any) -> int:
    return math.prod(array[1]) * _size(array[2])
