"""Shape: a published model's sizes, computed from its configuration alone.

The numbers are those of the module that mlx-lm builds lazily (`engine.checkpoint.built`): no memory is allocated, even for
2.8 T parameters. A model whose architecture mlx-lm lacks has them from its configuration and its published count of active
parameters; such a shape gives sizes, but no module.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from engine.checkpoint.built.model import BuiltModel, Switch, built_model
from engine.errors import HeadraceError

from .formats import BF16, HALF, Format, affine
from .layout import Layout, make_layout

GROUP_SIZE = 64  # of mlx-lm's conversions
# Matrices that publishers keep in bfloat16 when they quantize the rest.
KEPT = re.compile(r"embed|lm_head|norm|(?:^|\.)(?:gate|router)\.|conv|e_score")


@dataclass(frozen=True)
class Source:
    """Where the configuration was published, where it was read, and the date of what was read."""

    config: str
    read_from: str
    date: str


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A checkpoint of the shape whose size is published. `bits` None: the model's own formats."""

    name: str
    bits: int | None
    group_size: int | None
    nbytes: int
    source: str


@dataclass(frozen=True, eq=False)
class Shape:
    """A published model without its weights. Sizes without `bits` are those of its own formats."""

    name: str
    title: str
    config: Mapping[str, Any]  # the fields of config.json that mlx-lm reads, without those of quantization
    experts_format: Format
    rest_format: Format  # of the matrices that are quantized with the experts
    published_parameters: float | None
    parameters_source: str | None
    checkpoints: tuple[PublishedCheckpoint, ...]
    source: Source
    active_parameters: float | None = None  # published; only for architectures that mlx-lm lacks

    @property
    def has_module(self) -> bool:
        """Whether mlx-lm has the architecture, so that the shape can be built, written and run."""
        return self.active_parameters is None

    @property
    def module_config(self) -> dict[str, Any]:
        """The configuration from which mlx-lm builds the model. Raises `HeadraceError` if it lacks the architecture."""
        if not self.has_module:
            raise HeadraceError(
                f"{self.name}: mlx-lm has no architecture {self.config['model_type']}, so that the shape gives sizes only; "
                "use the shape of another model"
            )
        return dict(self.config)

    @cached_property
    def built(self) -> BuiltModel:
        """The numbers of mlx-lm's module. Raises `HeadraceError` for an architecture that mlx-lm lacks."""
        return built_model(Path(self.name), self.module_config)

    @cached_property
    def switches(self) -> tuple[Switch, ...]:
        """The routed experts of each layer that has some."""
        if self.has_module:
            return self.built.switches
        c = self.config
        sizes = c["n_routed_experts"], c["moe_intermediate_size"], c["hidden_size"], c["num_experts_per_tok"]
        return tuple(Switch(f"model.layers.{n}.mlp.switch_mlp", *sizes) for n in range(c["num_hidden_layers"]))

    @property
    def layers(self) -> int:
        """Layers with routed experts."""
        return len(self.switches)

    @property
    def experts(self) -> int:
        """Routed experts of a layer; the maximum where layers differ."""
        return max(switch.experts for switch in self.switches)

    @property
    def top_k(self) -> int:
        """Experts chosen for a token in each layer; the maximum where layers differ."""
        return max(switch.top_k for switch in self.switches)

    @property
    def context_limit(self) -> int | None:
        """The longest context in tokens; None if the configuration names none."""
        text = {**self.config, **self.config.get("text_config", {})}
        return text.get("max_position_embeddings") or text.get("model_max_length")

    @cached_property
    def parameters(self) -> int:
        """All parameters of the language model, without multi-token prediction and vision."""
        return self.resident_parameters + sum(s.experts * self._expert_parameters(s) for s in self.switches)

    @cached_property
    def resident_parameters(self) -> int:
        """The parameters that every token uses: all but the routed experts."""
        if self.active_parameters is not None:
            return round(self.active_parameters) - sum(s.top_k * self._expert_parameters(s) for s in self.switches)
        return sum(math.prod(shape) for shape in self._resident.values())

    def expert_bytes(self, bits: int | None = None, group_size: int = GROUP_SIZE) -> int:
        """Bytes of one routed expert, all projections; of the largest one where layers differ."""
        return max(self._expert_bytes(switch, self._format(bits, group_size)) for switch in self.switches)

    def experts_bytes(self, bits: int | None = None, group_size: int = GROUP_SIZE) -> int:
        """Bytes of all routed experts."""
        form = self._format(bits, group_size)
        return sum(switch.experts * self._expert_bytes(switch, form) for switch in self.switches)

    def token_bytes(self, bits: int | None = None, group_size: int = GROUP_SIZE) -> int:
        """Bytes of the routed experts that one token uses: what it reads without a cache."""
        form = self._format(bits, group_size)
        return sum(switch.top_k * self._expert_bytes(switch, form) for switch in self.switches)

    def resident_bytes(self, bits: int | None = None, group_size: int = GROUP_SIZE) -> int:
        """Bytes of everything else: attention, routers, shared experts, dense layers, embeddings and head.

        With `bits` as mlx-lm converts the model: routers, and what it does not quantize, keep more bits.
        """
        if not self.has_module:
            return (self.rest_format if bits is None else affine(bits, group_size)).nbytes(self.resident_parameters)
        if bits is not None:
            return self.layout(bits, group_size).resident_bytes
        return sum(
            self.rest_format.nbytes(math.prod(shape)) if _is_matrix(name, shape) else HALF * math.prod(shape)
            for name, shape in self._resident.items()
        )

    def total_bytes(self, bits: int | None = None, group_size: int = GROUP_SIZE) -> int:
        """Bytes of a checkpoint, without multi-token prediction and vision."""
        return self.resident_bytes(bits, group_size) + self.experts_bytes(bits, group_size)

    def layout(self, bits: int | None = None, group_size: int = GROUP_SIZE) -> Layout:
        """The tensors of the shape as mlx-lm converts it to `bits`, or in its own formats.

        Raises `HeadraceError` for an architecture that mlx-lm lacks, and for own formats with which MLX does not compute.
        """
        return _layout(self, bits, group_size)

    @cached_property
    def _resident(self) -> dict[str, tuple[int, ...]]:
        experts = tuple(f"{switch.path}." for switch in self.switches)
        return {name: shape for name, shape in self.built.parameters.items() if not name.startswith(experts)}

    def _format(self, bits: int | None, group_size: int) -> Format:
        return self.experts_format if bits is None else affine(bits, group_size)

    def _projections(self, switch: Switch) -> list[tuple[int, ...]]:
        """Shapes of one expert's matrices and vectors."""
        if not self.has_module:
            wide, narrow = (switch.rows, switch.columns), (switch.columns, switch.rows)
            return [wide, wide, narrow]
        prefix = f"{switch.path}."
        return [shape[1:] for name, shape in self.built.parameters.items() if name.startswith(prefix)]

    def _expert_parameters(self, switch: Switch) -> int:
        return sum(map(math.prod, self._projections(switch)))

    def _expert_bytes(self, switch: Switch, form: Format) -> int:
        """mlx-lm leaves matrices unquantized whose columns are no multiple of the group size."""
        total = 0
        for shape in self._projections(switch):
            quantized = len(shape) == 2 and (shape[-1] % form.group_size == 0 or not form.mode)
            total += (form if quantized else BF16).nbytes(math.prod(shape))
        return total


@functools.lru_cache(maxsize=16)
def _layout(shape: Shape, bits: int | None, group_size: int) -> Layout:
    form = shape._format(bits, group_size)
    paths = tuple(switch.path for switch in shape.built.switches)
    if not (form.mode or form.is_float):
        raise HeadraceError(
            f"{shape.name} is published in FP8, with which MLX does not compute; give the bits of a conversion, such as 4"
        )
    return make_layout(shape.config, paths, form, only_experts=bits is None)


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and not KEPT.search(name)
