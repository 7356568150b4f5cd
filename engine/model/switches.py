"""Switches: the modules that compute routed experts, found in mlx-lm's model, and the modules that replace them.

All Mixture-of-Experts models of mlx-lm share one interface, `y = switch(x, indices)`. The block multiplies by the gate
weights and adds shared experts outside the switch.
"""

from __future__ import annotations

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import CheckpointError

PROJECTIONS = (SwitchLinear, QuantizedSwitchLinear)
LAYER = re.compile(r"(.+?)\.(\d+)\.")  # a switch's path up to the first list of modules and the number in it


class StreamingSwitch(nn.Module):
    """A switch that calls `stream(x, indices)`. The stream is hidden from MLX's parameter trees.

    It has what the switch `replaced` has beside its projections, since a block may keep a norm of its own there.
    """

    stream: Any

    def __init__(self, stream: Any, replaced: nn.Module | None = None) -> None:
        super().__init__()
        object.__setattr__(self, "stream", stream)
        for name, value in (replaced or {}).items():
            if not isinstance(value, PROJECTIONS):
                self[name] = value

    def __call__(self, x: mx.array, indices: mx.array) -> Any:
        return self.stream(x, indices)


class OrderedLinear(QuantizedSwitchLinear):
    """mlx-lm's switch projection for weights whose columns are permuted within blocks; `order` None means not permuted."""

    def __init__(self, how: dict[str, Any], bias: bool, order: np.ndarray | None) -> None:
        super().__init__(how["group_size"], 1, 1, bias=bias, **how)
        self._order = None if order is None else mx.array(order.astype(np.uint32))

    def __call__(self, x: mx.array, indices: mx.array, sorted_indices: bool = False) -> mx.array:
        if self._order is not None:
            x = x.reshape(*x.shape[:-1], -1, self._order.size)[..., self._order].reshape(x.shape)
        return super().__call__(x, indices, sorted_indices=sorted_indices)


def switches(model: nn.Module, source: Checkpoint) -> list[tuple[str, Any]]:
    """Return path and module of every layer's switch, in the order of `source.layers`.

    Raises `CheckpointError` unless switches and layers correspond one to one.
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


def is_last(path: str, modules: dict[str, Any]) -> bool:
    """Return whether the switch at `path` is in the model's last layer, so that only the logits depend on it."""
    layer = LAYER.match(path)
    return layer is not None and f"{layer[1]}.{int(layer[2]) + 1}" not in modules
