"""Built model: the numbers of a model, read from the module that mlx-lm builds from config.json.

Architectures spell their arguments differently, nest them, and have defaults. Only mlx-lm's parsed arguments and the module
made from them give the right numbers. The module is built without weights and called with one token. MLX computes lazily, so
that neither costs memory: Kimi K2.5 in its full shape takes 0.1 s.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import CheckpointError, first_line

from ..experts import LAYER, layer_number


class MisfitError(CheckpointError):
    """A configuration that mlx-lm's code for its architecture cannot use."""


@dataclass(frozen=True)
class Switch:
    """A layer's routed experts in the built model."""

    path: str  # such as model.layers.3.mlp.switch_mlp
    experts: int
    rows: int  # of an expert's first projection: the expert's width
    columns: int  # of an expert's first projection: the width of the switch's input
    top_k: int  # experts chosen for a token

    @property
    def number(self) -> int:
        """The number of the layer in the model."""
        return layer_number(self.path)


@dataclass(frozen=True)
class BuiltModel:
    """The numbers of a model. All but `switches` are None or empty for a model without switches, which is not called."""

    switches: tuple[Switch, ...]
    parameters: Mapping[str, tuple[int, ...]] = field(repr=False)  # shapes before quantization, by name
    arguments: Mapping[str, Any] = field(repr=False)  # mlx-lm's parsed arguments, those of nested modules too
    hidden: int = 0  # width of the embedding
    vocabulary: int = 0  # logits of a token

    @functools.cached_property
    def layers(self) -> float:
        """Layers that the model runs; infinite if none of its parameters is in a numbered layer. A checkpoint may hold more
        (multi-token prediction), which mlx-lm drops."""
        numbers = (int(m[1]) for name in self.parameters if (m := LAYER.search(name)))
        return max((number + 1 for number in numbers), default=math.inf)

    @property
    def top_k(self) -> int:
        """Experts chosen for a token in each layer; the maximum where layers differ; 0 without experts."""
        return max((switch.top_k for switch in self.switches), default=0)

    def switch(self, number: int) -> Switch | None:
        """The switch in the layer of that number."""
        return next((switch for switch in self.switches if switch.number == number), None)


NO_KERNEL = "[metal_kernel] No Metal back-end"  # MLX's error where a model has a Metal kernel of its own


def build(config: Mapping[str, Any]) -> Any:
    """mlx-lm's module for a configuration, with random weights that are not computed. Raises whatever mlx-lm raises."""
    from mlx_lm.utils import _get_classes

    own = copy.deepcopy(dict(config))  # mlx-lm changes nested entries
    model_class, args_class = _get_classes(own)
    with aside():
        return model_class(args_class.from_dict(own))


def built_model(path: Path, config: Mapping[str, Any]) -> BuiltModel:
    """The model that mlx-lm builds from the configuration of the checkpoint `path`. Raises `CheckpointError`."""
    name = config["model_type"]
    if config.get("model_file") is not None:
        raise CheckpointError(
            f"checkpoint {path} brings code for its architecture ({config['model_file']!r:.80}), which is not run; give a "
            "model of an architecture that mlx-lm has"
        )
    try:
        return _built(json.dumps(config))
    except (KeyError, AttributeError, ValueError, ImportError) as e:
        if not _is_known(config):
            raise CheckpointError(
                f"checkpoint {path}: mlx-lm has no architecture {name}; give a model that it has, or update mlx-lm"
            ) from e
        raise _misfit(path, name, e) from e
    except Exception as e:  # a wrong number raises almost anything, even ZeroDivisionError
        raise (no_kernel(path, name, e) if NO_KERNEL in str(e) else _misfit(path, name, e)) from e


def no_kernel(path: Path, name: str, e: Exception) -> CheckpointError:
    """Return the error for a model with Metal kernels of its own, where MLX has no Metal."""
    return CheckpointError(
        f"checkpoint {path}: {name} computes with Metal kernels of its own, which this backend of MLX lacks "
        f"({first_line(e)}); run it on Apple silicon"
    )


def _misfit(path: Path, name: str, e: Exception) -> MisfitError:
    return MisfitError(
        f"checkpoint {path}: mlx-lm cannot build {name} from config.json ({type(e).__name__}: {first_line(e)}); copy "
        "config.json again"
    )


def _is_known(config: Mapping[str, Any]) -> bool:
    from mlx_lm.utils import _get_classes

    try:
        _get_classes(dict(config))
    except Exception:  # such as a module of mlx_lm.models that is not a model
        return False
    return True


@functools.lru_cache(maxsize=64)
def _built(config: str) -> BuiltModel:
    import mlx.core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.models.cache import make_prompt_cache

    model = build(json.loads(config))
    named: Any = tree_flatten(model.parameters())
    shapes = {name: tuple(value.shape) for name, value in named}
    arguments = dict(_arguments(model))
    chosen: dict[str, int] = {}
    with _recorded(model, chosen):
        if not chosen:  # without switches a block may compute what it routes
            return BuiltModel((), shapes, arguments)
        with aside():
            logits = model(mx.array([[0]]), cache=make_prompt_cache(model))
    switches = tuple(_switch(path, shapes, top_k) for path, top_k in chosen.items() if top_k)
    return BuiltModel(switches, shapes, arguments, _width(model), logits.shape[-1])


def _switch(path: str, shapes: Mapping[str, tuple[int, ...]], top_k: int) -> Switch:
    experts, rows, columns = next(s for name in ("up_proj", "fc1") if (s := shapes.get(f"{path}.{name}.weight")) is not None)
    return Switch(path, experts, rows, columns, top_k)


def _width(model: Any) -> int:
    from mlx.nn import Embedding

    return next((int(m.weight.shape[1]) for _, m in model.named_modules() if isinstance(m, Embedding)), 0)


def _arguments(model: Any) -> Iterator[tuple[str, Any]]:
    """Names and values of the parsed arguments that the model's modules keep, the innermost last."""
    from mlx_lm.models.base import BaseModelArgs

    seen: set[int] = set()
    for _, module in reversed(model.named_modules()):
        for kept in vars(module).values():
            if isinstance(kept, BaseModelArgs) and id(kept) not in seen:
                seen.add(id(kept))
                yield from vars(kept).items()


@contextmanager
def _recorded(model: Any, chosen: dict[str, int]) -> Iterator[None]:
    """Note for each switch's path the number of experts that it is called with; 0 before and without a call."""
    from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

    def recorder(kind: Any, path: str) -> type:
        class Recorder(kind):
            def __call__(self, x: Any, indices: Any, *more: Any, **named: Any) -> Any:
                chosen[path] = max(chosen[path], indices.shape[-1])
                return super().__call__(x, indices, *more, **named)

        return Recorder

    modules = [(path, m) for path, m in model.named_modules() if isinstance(m, SwitchGLU | SwitchMLP)]
    found = [(path, m, type(m)) for path, m in sorted(modules, key=lambda of: layer_number(of[0]))]
    for path, module, kind in found:
        chosen[path] = 0
        module.__class__ = recorder(kind, path)
    try:
        yield
    finally:
        for _, module, kind in found:
            module.__class__ = kind


@contextmanager
def aside() -> Iterator[None]:
    """Leave MLX as it is: its random state, from which a new module's weights are drawn, and a GPU, whose memory a process
    that only plans does not need."""
    import mlx.core as mx

    with mx.stream(mx.cpu):
        state: Any = mx.random.state
        upper, lower = state[0].tolist()
        try:
            yield
        finally:
            mx.random.seed((upper << 32) | lower)
