"""Layout: the tensors of a shape as mlx-lm holds them, with their types and shapes, but no values.

mlx-lm's own function quantizes the lazily built module, so that its exceptions hold (routers at 8 bits, matrices whose
columns are no multiple of the group size). MLX infers the shapes and computes nothing.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from engine.checkpoint.built.model import aside, build
from engine.checkpoint.dtypes import ITEM_BYTES

from .formats import Format

Tensor = tuple[str, tuple[int, ...]]  # safetensors type and shape


@dataclass(frozen=True)
class Layout:
    """The tensors of a checkpoint by name, and the configuration that describes them."""

    config: dict[str, Any] = field(repr=False)
    tensors: dict[str, Tensor] = field(repr=False)
    experts: tuple[str, ...]  # paths of the switches, whose tensors are all routed experts'
    symmetric: bool  # whether the experts' biases follow from their scales and are not stored

    def is_expert(self, name: str) -> bool:
        """Whether a tensor holds routed experts."""
        return name.startswith(self._prefixes)

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple(f"{path}." for path in self.experts)

    @cached_property
    def resident_bytes(self) -> int:
        """Bytes of all tensors but the routed experts'."""
        return sum(nbytes(tensor) for name, tensor in self.tensors.items() if not self.is_expert(name))


def nbytes(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return math.prod(tensor[1]) * ITEM_BYTES[tensor[0]]


def make_layout(config: Mapping[str, Any], experts: tuple[str, ...], form: Format, *, only_experts: bool) -> Layout:
    """The tensors of the model with this configuration, whose switches have the paths `experts`, quantized to `form`:
    everything that mlx-lm quantizes when it converts a model, or only the experts."""
    with aside():
        model = build(config)
        changed = _quantize(model, copy.deepcopy(dict(config)), form, experts if only_experts else None)
        tensors = _tensors(model)
    symmetric = form.mode == "affine" and not form.biases
    if symmetric:
        tensors = {n: t for n, t in tensors.items() if not (n.startswith(experts) and n.endswith(".biases"))}
    return Layout(changed, tensors, experts, symmetric)


def _quantize(model: Any, config: dict[str, Any], form: Format, only: tuple[str, ...] | None) -> dict[str, Any]:
    """Quantize the module, or only what is in `only`; returns the configuration with the entries for loading it."""
    from mlx_lm.utils import quantize_model

    if form.is_float:
        return config
    predicate = None if only is None else lambda path, _: path.startswith(only)
    kept = () if only is None else (path for path, m in model.named_modules() if hasattr(m, "to_quantized"))
    others = [path for path in kept if not path.startswith(only or ())]
    with contextlib.redirect_stdout(io.StringIO()):  # mlx-lm prints the bits
        changed = quantize_model(model, config, form.group_size, form.bits, form.mode, quant_predicate=predicate)[1]
    changed["quantization"] |= dict.fromkeys(others, False)
    return dict(changed)


def _tensors(model: Any) -> dict[str, Tensor]:
    import mlx.core as mx
    from mlx.utils import tree_flatten

    types = {mx.uint32: "U32", mx.uint8: "U8"}
    flat: Any = tree_flatten(model.parameters())
    return {name: (types.get(value.dtype, "BF16"), tuple(value.shape)) for name, value in flat}
