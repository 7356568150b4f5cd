"""Needed tensors: which parameters of the built model a checkpoint's tensors do not give.

A checkpoint's tensors may have other names than the model's parameters: mlx-lm's `sanitize` renames, joins and drops them.
It runs here on placeholders of the same names, types and shapes, which take no memory and are never computed. Kimi K2.5's
208,215 tensors take 3 s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..experts import FP8_SCALES
from ..files.headers import garbage_collection_off
from .model import aside, build

LOADED = {
    "F64": "float64", "I64": "int64", "U64": "uint64", "C64": "complex64", "F32": "float32", "I32": "int32",
    "U32": "uint32", "F16": "float16", "BF16": "bfloat16", "I16": "int16", "U16": "uint16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool_",
}  # fmt: skip  # MLX's types by safetensors' names; it reads all FP8 as bytes
AWQ = ".qweight"  # mlx-lm converts these to `.weight` after `sanitize`
Described = tuple[str, str, tuple[int, ...]]  # name, safetensors type and shape of a tensor


def missing(config: Mapping[str, Any], tensors: Iterable[Described]) -> list[str]:
    """Names of the parameters that the model needs and the tensors do not give. If `sanitize` itself needs a tensor that is
    not there, only that one. Empty if `sanitize` fails otherwise: then loading explains it."""
    model = build(config)
    with aside(), garbage_collection_off():
        stored = placeholders(tensors)
        try:
            given = model.sanitize(dict(stored)) if hasattr(model, "sanitize") else stored
        except KeyError as e:
            return [str(e.args[0]) if e.args else "a tensor"]
        except Exception:  # shapes that do not fit each other, for example
            return []
        found = {*given, *(name.removesuffix(AWQ) + ".weight" for name in given if name.endswith(AWQ))}
        return sorted((parameters(model) | _of_quantized(given)) - found) or sorted(_of_fp8(stored))


def _of_quantized(given: Mapping[str, Any]) -> set[str]:
    """Names of the scales of packed weights, and of the biases that belong to scales which are floats."""
    import mlx.core as mx

    packed = [name.removesuffix("weight") for name, v in given.items() if name.endswith(".weight") and v.dtype == mx.uint32]
    scales = {f"{module}scales" for module in packed}
    affine = (name for name in scales & given.keys() if mx.issubdtype(given[name].dtype, mx.floating))
    return scales | {name.removesuffix("scales") + "biases" for name in affine}


def _of_fp8(stored: Mapping[str, Any]) -> set[str]:
    """Names of the block scales of FP8 weights, if some have them: mlx-lm would take codes without scales for weights."""
    import mlx.core as mx

    if not any(name.endswith(FP8_SCALES) for name in stored):
        return set()
    codes = (name for name, v in stored.items() if name.endswith(".weight") and v.dtype == mx.uint8)
    return {scales for name in codes if (scales := name.removesuffix("weight") + FP8_SCALES) not in stored}


def placeholders(tensors: Iterable[Described]) -> dict[str, Any]:
    """Arrays of these types and shapes, by name. Equal ones are one array."""
    import mlx.core as mx

    made: dict[tuple[str, tuple[int, ...]], Any] = {}
    found = {}
    for name, dtype, shape in tensors:
        if (dtype, shape) not in made:
            zero = mx.array(0, getattr(mx, LOADED.get(dtype, "uint8")))
            made[dtype, shape] = mx.broadcast_to(zero, shape)
        found[name] = made[dtype, shape]
    return found


def parameters(model: Any) -> set[str]:
    """Names of the parameters that mlx-lm loads, before quantization."""
    from mlx.utils import tree_flatten

    named: Any = tree_flatten(model.parameters())
    return {name for name, _ in named}
