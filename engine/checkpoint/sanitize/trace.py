"""Trace: runs mlx-lm's `sanitize` on a small copy of a checkpoint and follows every expert's elements back to the files.

mlx-lm opens the real files lazily at the same time, so a layout that it cannot open is known too. No weight is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoint.built.model import aside
from engine.errors import first_line

from .parts import Part, find_part, in_items
from .small import LAYER, Shapes, Small, small_copy

LARGEST = 8  # a result with more bytes than this multiple of the small copy comes from the real weights
Weights = dict[str, Any]  # name -> mlx array
Sanitize = Callable[[Weights], Weights]


@dataclass(frozen=True)
class Taken:
    """Where one tensor of a switch comes from. `sources` has the stored tensor of every expert, or one that holds all of
    them; `slabs` the place of each expert in it."""

    name: str  # such as gate_proj.weight
    dtype: str  # MLX's name of the type
    item_bytes: int
    sources: tuple[str, ...]
    slabs: tuple[int, ...]
    part: Part
    axes: int  # number of axes that one expert's tensor has


Rules = dict[str, Taken | None]


@dataclass(frozen=True)
class Trace:
    """What mlx-lm does with a checkpoint's experts.

    `layers`: block -> tensor (gate_proj.weight) -> where it comes from, None if it has other values than the files; no
    tensors if they cannot be followed. `refused`: why mlx-lm cannot open the checkpoint; None if it can.
    """

    layers: Mapping[str, Rules]
    refused: str | None


def trace(path: Path, tensors: Shapes) -> Trace:
    """Follow the experts of the checkpoint in the folder `path`, whose files hold `tensors`."""
    from mlx_lm.utils import _get_classes, load_model

    found: dict[str, Rules] = {}

    def classes(config: dict[str, Any]) -> tuple[type, type]:
        model_class, args_class = _get_classes(config)

        class Traced(model_class):  # type: ignore[misc, valid-type]
            def sanitize(self, weights: Weights) -> Weights:
                cleaned: Sanitize = super().sanitize if hasattr(model_class, "sanitize") else dict
                found.update(_followed(self, cleaned, weights, tensors))
                return cleaned(weights)

        return Traced, args_class

    try:
        with aside():
            load_model(path, lazy=True, get_model_classes=classes)
    except Exception as e:  # a layout that mlx-lm does not have raises almost anything
        return Trace(found, first_line(e))
    return Trace(found, None)


def _followed(model: Any, sanitize: Sanitize, weights: Weights, tensors: Shapes) -> dict[str, Rules]:
    from mlx_lm.models.switch_layers import SwitchGLU, SwitchLinear, SwitchMLP

    switches = {
        path: [name for name, child in switch.children().items() if isinstance(child, SwitchLinear)]
        for path, switch in model.named_modules()
        if isinstance(switch, SwitchGLU | SwitchMLP)
    }
    modules = dict(model.named_modules())
    counts = {modules[f"{path}.{name}"].num_experts for path, names in switches.items() for name in names}
    small, kinds = small_copy({name: tensors[name] for name in tensors if name in weights}, counts)
    first: dict[str, str] = {}  # kind -> a switch of that kind
    for path in switches:
        if _number(path) in kinds:
            first.setdefault(kinds[_number(path)], path)
    try:
        prefixes = tuple(f"{path}.{name}." for path in first.values() for name in switches[path])
        runs = _runs(small, sanitize, weights, prefixes)
    except Exception:  # what mlx-lm computes with the real sizes may be impossible with the short ones
        return {path.rpartition(".")[0]: {} for path in switches}
    rules: dict[str, Rules] = {}
    for kind, path in first.items():
        results = {name: tuple(run[name] for run in runs) for name in runs[0] if name.startswith(f"{path}.")}
        rules[kind] = {n[len(path) + 1 :]: _rule(small, n[len(path) + 1 :], digits) for n, digits in results.items()}
    return {
        path.rpartition(".")[0]: {
            name: _of_layer(taken, _number(path)) for name, taken in rules.get(kinds.get(_number(path), ""), {}).items()
        }
        for path in switches
    }


def _number(path: str) -> int:
    m = LAYER.search(path)
    return int(m[0]) if m else 0


def _runs(small: Small, sanitize: Sanitize, weights: Weights, prefixes: tuple[str, ...]) -> list[dict[str, Any]]:
    """One run for each digit. The layers that `prefixes` leave out are not needed, unless `sanitize` insists on them."""
    numbers = {_number(prefix) for prefix in prefixes}
    few = {n: value for n, value in weights.items() if not (m := LAYER.search(n)) or int(m[0]) in numbers}
    try:
        return [_run(small, sanitize, few, prefixes, digit) for digit in range(small.digits)]
    except Exception:
        return [_run(small, sanitize, weights, prefixes, digit) for digit in range(small.digits)]


def _run(small: Small, sanitize: Sanitize, weights: Weights, prefixes: tuple[str, ...], digit: int) -> dict[str, Any]:
    """The tensors with these `prefixes` that `sanitize` makes of one digit of the places; name -> (bytes, MLX's type).
    Raises `ValueError` if a prefix has none or if they do not come from the small copy."""
    import mlx.core as mx

    of_copy: dict[str, Any] = {}
    mine = dict(weights)
    for name in weights.keys() & small.names.keys():
        copy = small.names[name]
        if copy not in of_copy:
            shape = small.shapes[copy]
            content = mx.array(small.bytes_of(copy, digit).reshape(*shape[:-1], shape[-1] * small.item_bytes[copy]))
            of_copy[copy] = content.view(weights[name].dtype)
        mine[name] = of_copy[copy]
    out: dict[str, Any] = {}
    for name, value in sanitize(mine).items():
        if name.startswith(prefixes):
            if value.nbytes > LARGEST * small.nbytes:
                raise ValueError(f"{name} does not come from the small copy")
            stored = np.array(mx.contiguous(value).view(mx.uint8))
            out[name] = stored.reshape(*value.shape, value.dtype.size), str(value.dtype)
    if not all(any(name.startswith(prefix) for name in out) for prefix in prefixes):
        raise ValueError("sanitize made no tensors of a switch")
    return out


def _rule(small: Small, name: str, digits: tuple[Any, ...]) -> Taken | None:
    """Where the elements of one tensor come from, by the digits of their places; None if they are not stored elements."""
    places = sum(content.astype(np.int64) << (8 * n) for n, (content, _) in enumerate(digits))
    dtype, item = digits[0][1].rpartition(".")[2], places.shape[-1]
    if places.size == 0 or (places != places[..., :1] + np.arange(item)).any() or places.max() >= small.nbytes:
        return None
    first = places[..., 0]
    copies = sorted(small.starts, key=small.starts.__getitem__)
    starts = np.array([small.starts[copy] for copy in copies])
    owner = np.searchsorted(starts, first, side="right") - 1
    experts = len(first)
    owners, first = owner.reshape(experts, -1), first.reshape(experts, -1)
    if (owners != owners[:, :1]).any():
        return None
    sources = [copies[n] for n in owners[:, 0]]
    slabs, rules = [], set()
    for source, own in zip(sources, first, strict=True):
        stacked = source in small.stacked
        shape = small.shapes[source][stacked:]
        nbytes = int(np.prod(shape)) * small.item_bytes[source]
        at = own - small.starts[source]
        slab = int(at[0]) // nbytes
        at = at - slab * nbytes
        scaled = in_items(shape, small.item_bytes[source], item)
        if (at < 0).any() or (at >= nbytes).any() or (at % item).any() or scaled is None:
            return None
        slabs.append(slab)
        rules.add((scaled, (at // item).reshape(places.shape[1:-1]).tobytes()))
    if len(rules) != 1 or len({source in small.stacked for source in sources}) != 1:
        return None
    scaled, _ = rules.pop()
    at = (first[0] - small.starts[sources[0]] - slabs[0] * int(np.prod(scaled)) * item) // item
    part = find_part(at.reshape(places.shape[1:-1]), scaled)
    if part is None:
        return None
    names = tuple(source.partition(" ")[2] for source in sources)
    if sources[0] in small.stacked:
        if len(set(names)) != 1:
            return None
        names = names[:1]
    return Taken(name, dtype, item, names, tuple(slabs), part, places.ndim - 2)


def _of_layer(taken: Taken | None, number: int) -> Taken | None:
    """The same rule for another layer of the kind."""
    if taken is None:
        return None
    sources = tuple(source.replace("*", str(number), 1) for source in taken.sources)
    return Taken(taken.name, taken.dtype, taken.item_bytes, sources, taken.slabs, taken.part, taken.axes)
