"""Open: mlx-lm's model of a checkpoint, loaded lazily, so that no expert's weights are read.

A shape without files is built instead, so that what a pass over it takes can be predicted.

A packed store has no expert tensors that mlx-lm knows. Its model class is subclassed to leave the switches' weights as they
were created; they are replaced or never computed.
"""

from __future__ import annotations

import copy
import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchGLU, SwitchLinear, SwitchMLP
from mlx_lm.utils import _get_classes, load_model

from engine.checkpoint.built.model import NO_KERNEL, aside, build, no_kernel
from engine.checkpoint.built.needed import placeholders
from engine.checkpoint.checkpoint import Checkpoint
from engine.checkpoint.files.headers import garbage_collection_off
from engine.errors import CheckpointError, first_line
from engine.system.open_files import ensure_open_files

from .switches import PROJECTIONS


def open_model(source: Checkpoint) -> nn.Module:
    """Return mlx-lm's model with lazy weights. Raises `CheckpointError` if mlx-lm cannot build it or shapes do not fit."""
    ensure_open_files(len(source.files), f"a model of {len(source.files)} files")
    try:
        if source.files:
            classes = functools.partial(_without_experts, source) if source.store is not None else _get_classes
            config = copy.deepcopy(source.config)  # with the knob top_k; mlx-lm changes nested entries
            with garbage_collection_off():  # for 208,000 tensors 8.0 instead of 12.5 s of processor time
                model, _ = load_model(source.path, lazy=True, model_config=config, get_model_classes=classes)
        else:
            model = _of_shape(source)
        model(mx.array([[0]]), cache=make_prompt_cache(model))  # lazy: computes nothing, but checks that the shapes fit
    except Exception as e:  # a wrong config.json raises almost anything in mlx-lm, even ZeroDivisionError
        if NO_KERNEL in str(e):
            raise no_kernel(source.path, source.architecture, e) from e
        raise CheckpointError(
            f"checkpoint {source.path}: mlx-lm cannot open {source.architecture} ({first_line(e)}); "
            "copy config.json and its shards from one source, or update mlx-lm"
        ) from e
    return model


def _of_shape(source: Checkpoint) -> nn.Module:
    """Return the model of a shape, which has no files (`engine.shapes`). Its weights are random and never computed."""
    with aside():
        model: nn.Module = build(source.config)
        model.set_dtype(mx.bfloat16)
        how = source.config.get("quantization")
        if how is not None:

            def found(path: str, module: nn.Module) -> bool | dict[str, Any]:
                fits = hasattr(module, "to_quantized") and module.weight.shape[-1] % how["group_size"] == 0
                chosen: bool | dict[str, Any] = how.get(path, fits)
                return chosen

            nn.quantize(model, how["group_size"], how["bits"], mode=how.get("mode", "affine"), class_predicate=found)
    return model


def _without_experts(source: Checkpoint, config: dict[str, Any]) -> tuple[type[nn.Module], type]:
    """Return mlx-lm's classes for a store. The switches' weights are not loaded; all other weights must be present.

    mlx-lm's `sanitize` may rename or convert depending on whether expert tensors are present. It therefore gets zeros under
    the checkpoint's original names, and the results are dropped afterwards.
    """
    assert source.store is not None
    replaced = source.store.replaced
    model_class, args_class = _get_classes(config)

    class Opened(model_class):  # type: ignore[misc, valid-type]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            if not hasattr(super(), "sanitize"):
                return weights
            cleaned = super().sanitize({**placeholders(replaced), **weights})
            paths = self._switch_paths()
            return {name: value for name, value in cleaned.items() if not name.startswith(paths)}

        def load_weights(self, weights: Any, strict: bool = True) -> Any:
            parameters: Any = tree_flatten(self.parameters())
            paths = self._switch_paths()  # once: it looks through all modules
            created = [(name, value) for name, value in parameters if name.startswith(paths)]
            return super().load_weights([*created, *weights], strict)

        def _switch_paths(self) -> tuple[str, ...]:
            switches = [(path, m) for path, m in self.named_modules() if isinstance(m, SwitchGLU | SwitchMLP)]
            return tuple(f"{path}.{name}." for path, m in switches for name in m if isinstance(m[name], PROJECTIONS))

    return Opened, args_class


def lay_out_for_cpu(model: nn.Module) -> None:
    """Store float32 matrices column by column; their values and shapes stay the same.

    On Linux's CPU, products of float32 matrices sum their terms in the same order for either layout. They take less time if
    the second operand is not transposed: by the reference BLAS 1.3 (one token) to 2.8 times less (a prefill), and the
    extension (engine/native/products) makes no copy of the operand then.
    """
    for module in model.modules():
        weight = None if isinstance(module, nn.Embedding) else module.get("weight")
        if weight is not None and weight.ndim == 2 and weight.dtype == mx.float32:
            module.weight = mx.contiguous(weight.T).T
            mx.eval(module.weight)


def lay_out_for_gpu(model: nn.Module) -> None:
    """Store each projection of the experts contiguously; values and shapes stay the same.

    mlx-lm splits a checkpoint's joint gate and up projections into two views. For the sorted rows of a prompt, kernels of
    MLX 0.32 assume that a projection's experts follow each other without a gap, and compute wrong outputs with such a view
    (ml-explore/mlx issue 4055: `gather_qmm`; cutlass_grouped_gemm_unaligned in mlx/backend/cuda/gemms: `gather_mm`).
    """
    for module in model.modules():
        if isinstance(module, SwitchLinear | QuantizedSwitchLinear):
            for name, value in module.items():
                if isinstance(value, mx.array):
                    module[name] = mx.contiguous(value)
            mx.eval(module.parameters())
