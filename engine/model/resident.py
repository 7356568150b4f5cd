"""Resident weights at fewer bits: attention, shared experts, dense layers, embeddings and head, quantized when loaded.

It uses MLX's affine quantization in groups of 64, or of 32 where a width is not a multiple of 64. Routers are never
quantized, since their choice is discrete, nor are modules to which mlx-lm gives bits of their own (a model's
`quant_predicate`). Modules that already have as few bits stay as they are; those with more are requantized.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

from engine.checkpoint.checkpoint import Checkpoint
from engine.errors import KnobError

from .backend import compute_dtype
from .open import lay_out_for_cpu, lay_out_for_gpu, open_model
from .switches import switches


def read_resident(model: nn.Module, source: Checkpoint, bits: int | None) -> None:
    """Read all weights that are still in the model, bring them to `bits` and to their layout, and evaluate them."""
    dtype = compute_dtype()
    if dtype is not None:
        model.set_dtype(dtype)
    if bits is not None:
        quantize_resident(model, source, bits)
        _evaluate_one_by_one(model)
    if dtype is not None:
        lay_out_for_cpu(model)
        _evaluate_one_by_one(model)
    else:
        lay_out_for_gpu(model)
    # With arrays that are no parameters (frequencies of a position encoding): no other thread could evaluate them.
    mx.eval([value for module in model.modules() for value in module.values() if isinstance(value, mx.array)])
    model.eval()


def _evaluate_one_by_one(model: nn.Module) -> None:
    """Evaluate the modules one after the other, so that only one is held at both widths."""
    for module in model.modules():
        mx.eval([value for value in module.values() if isinstance(value, mx.array)])


def quantize_resident(model: nn.Module, source: Checkpoint, bits: int) -> None:
    """Quantize everything but routed experts to `bits`, lazily. Raises `KnobError` if no module has more bits."""
    narrower = _narrower(model, bits)
    found = {path: (module, how) for path, module in model.named_modules() if (how := narrower(path, module))}
    if not found:
        raise KnobError(
            f"resident_bits={bits} has no effect: no weights of {source.name} except experts and routers have more bits; "
            "leave it unset"
        )
    for module, how in found.values():
        if "scales" in module:
            source_how = {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            wide = mx.dequantize(module.weight, module.scales, module.get("biases"), **source_how)
            module.weight, module.scales, module.biases = mx.quantize(wide, how["group_size"], bits)
            module.group_size, module.bits, module.mode = how["group_size"], bits, "affine"
    plain = {path: how for path, (module, how) in found.items() if "scales" not in module}
    nn.quantize(model, bits=bits, class_predicate=lambda path, _: plain.get(path, False))


def resident_bytes_at(source: Checkpoint, bits: int) -> int:
    """Return the bytes of everything but routed experts at `bits`. It opens the model, but reads no weights."""
    known = source.path, source.header_digest, bits
    if known not in _BYTES:
        model = open_model(source)
        dtype = compute_dtype()
        if dtype is not None:
            model.set_dtype(dtype)
        quantize_resident(model, source, bits)
        experts = tuple(f"{path}." for path, _ in switches(model, source))
        named: Any = tree_flatten(model.parameters())
        _BYTES[known] = sum(value.nbytes for name, value in named if not name.startswith(experts))
    return _BYTES[known]


_BYTES: dict[tuple[Path, str, int], int] = {}  # opening a large model takes seconds


def _narrower(model: nn.Module, bits: int) -> Callable[[str, Any], dict[str, int] | None]:
    """Return a function from a module's path to its quantization, None if it stays as it is."""
    own: Callable[[str, Any], Any] = getattr(model, "quant_predicate", None) or (lambda path, module: True)

    def narrower(path: str, module: Any) -> dict[str, int] | None:
        if isinstance(module, SwitchLinear) or not (hasattr(module, "to_quantized") or _width(module) > bits):
            return None
        if any(part == "router" or part.endswith("gate") for part in path.split(".")) or own(path, module) is not True:
            return None
        columns = module.weight.shape[-1] * 32 // (_width(module) or 32)
        group_size = next((size for size in (64, 32) if columns % size == 0), None)
        return None if group_size is None else {"group_size": group_size, "bits": bits}

    return narrower


def _width(module: Any) -> int:
    """Return the bits of a quantized module that is not a switch, else 0."""
    return 0 if "scales" not in module or isinstance(module, QuantizedSwitchLinear) else module.bits
