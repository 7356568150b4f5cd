"""Export: the graph that MLX builds for a function, as entries with the size of each array; nothing is computed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx


def exported(run: Callable[..., list[mx.array]], inputs: list[mx.array], *, compiled: bool) -> list[dict[str, Any]]:
    """Return the entries of the graph of `run`: one for each array list and primitive. `compiled`: with MLX's compilation,
    which joins elementwise operations. Raises `ValueError` if it has a primitive that MLX cannot export."""
    graph: list[dict[str, Any]] = []
    with _exportable(compiled=compiled):
        mx.export_function(graph.append, run, *inputs)
    return graph


@contextlib.contextmanager
def _exportable(*, compiled: bool) -> Iterator[None]:
    """Replace the functions whose primitives MLX cannot export by others with results of the same size."""
    dequantize = mx.dequantize

    def dequantized(w: mx.array, scales: mx.array, *more: Any, **named: Any) -> mx.array:
        if named.get("mode", "affine") not in ("mxfp8", "nvfp4"):
            return dequantize(w, scales, *more, **named)
        per_word = 32 // int(named.get("bits") or (8 if named["mode"] == "mxfp8" else 4))
        return mx.repeat(w, per_word, axis=-1).astype(named.get("dtype") or mx.bfloat16)

    stand_ins = {
        "contiguous": lambda array, *_, **__: array,  # it copies at most its input
        "to_fp8": lambda array, *_, **__: array.astype(mx.uint8),
        "from_fp8": lambda array, dtype=mx.bfloat16, **_: array.astype(dtype),
        "dequantize": dequantized,
    }
    own = {name: getattr(mx, name) for name in stand_ins}
    try:
        for name, function in stand_ins.items():
            setattr(mx, name, function)
        if not compiled:
            mx.disable_compile()
        yield
    finally:
        if not compiled and os.environ.get("MLX_DISABLE_COMPILE") is None:
            mx.enable_compile()
        for name, function in own.items():
            setattr(mx, name, function)
