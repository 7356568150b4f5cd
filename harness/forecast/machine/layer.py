"""Layer: the time that a layer of a model's real shape takes to compute on this machine, with weights of zeros.

Two short models are built with mlx-lm, the shallowest with routed experts that it builds, and one a few layers deeper. They
have the model's widths, heads and formats, and as many experts as two tokens use. The difference of their times is that of a
layer. The rest is that of the head and of a pass. A head that is too large has a part of the vocabulary, and a third model
with half of that part gives the time of the remainder, so that the pass counts once. A pass over a prompt comes first, so
that attention sees a context as long as those of the evaluation texts, or a shorter one where a layer is slow. Figures are
means, as tokens a second are, of the rounds that compile no kernels.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass
from typing import Any

from engine.errors import HeadraceError
from engine.shapes.as_checkpoint import as_checkpoint
from engine.shapes.shape import Shape

from .short import least_depth, probing, rounds, shortened

DEEPER = 4  # layers of a period of attention, in models that mix kinds
MOST_BYTES = 6 << 30  # of the weights of a short model; a deeper one is shortened
ROUNDS, LONGEST_S = 100, 3.0
CONTEXT, FEW, PROMPT_MS = 160, 8, 1000.0  # tokens; a prompt is shorter where a token takes too long in a layer
HEAD_BYTES = 256 << 20  # of the largest head that is measured whole, as 32-bit floats


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of a token in a layer, in the rest of the model, and of a prompt's token in a layer.

    `sd` is the standard error of the logarithm of a layer's time.
    """

    layer_ms: float
    rest_ms: float
    prompt_layer_ms: float
    sd: float


def layer_time(shape: Shape, bits: int | None) -> LayerTime:
    """Measure the layers of a shape as converted to `bits`. Raises `HeadraceError` if mlx-lm cannot build or run it."""
    total = int(shape.built.layers)
    low = min(least_depth(shape), max(1, total - 1))
    high = min(low + DEEPER, total)
    if high == low:
        raise HeadraceError(f"{shape.name} has {total} layer, of which no difference can be measured; give another model")
    part = max(1, math.ceil(4 * shape.built.vocabulary * shape.built.hidden / HEAD_BYTES))
    with probing(f"a layer of {shape.name}"):
        one, more = (_Short(shortened(shape, n, part), bits) for n in (low, high))
        while more.nbytes > MOST_BYTES and high > low + 1:
            high -= 1
            more = _Short(shortened(shape, high, part), bits)
        less = _Short(shortened(shape, low, 2 * part), bits) if part > 1 else one
        return _times(one, more, less, low, high - low, part)


def _times(one: _Short, more: _Short, less: _Short, low: int, apart: int, part: int) -> LayerTime:
    models = (one, more, less) if part > 1 else (one, more)
    passes = [model.run(1) for model in models for _ in range(2)]
    tokens = int(max(FEW, min(CONTEXT, PROMPT_MS * apart / max(passes[3] - passes[1], 1e-3)))) // 2
    prompts = [model.run(tokens) for model in models]  # two passes of so many tokens, of which the second is timed
    measured = rounds(lambda: [model.run(1) for model in models], ROUNDS, LONGEST_S)
    each = [(found[1] - found[0]) / apart for found in measured]
    layer = max(statistics.fmean(each), 1e-4)
    rest = max(0.0, statistics.fmean(found[0] for found in measured) - low * layer)
    if part > 1:  # half a part of the head is the difference of `one` and `less`
        rest += 2 * (part - 1) * max(0.0, statistics.fmean(found[0] - found[2] for found in measured))
    prompt = max((prompts[1] - prompts[0]) / apart / tokens, layer / tokens)
    return LayerTime(layer, rest, prompt, statistics.stdev(each) / math.sqrt(len(each)) / layer)


class _Short:
    """A short model with weights of zeros."""

    def __init__(self, shape: Shape, bits: int | None) -> None:
        import mlx.core as mx
        from mlx.utils import tree_flatten, tree_map

        from engine.model.backend import compute_dtype
        from engine.model.open import lay_out_for_cpu, open_model

        model = open_model(as_checkpoint(shape, bits))
        if (dtype := compute_dtype()) is not None:
            model.set_dtype(dtype)
        model.update(tree_map(lambda value: mx.zeros(value.shape, value.dtype), model.parameters()))
        if dtype is not None:
            lay_out_for_cpu(model)  # as the engine does
        flat: Any = tree_flatten(model.parameters())
        self.nbytes = sum(value.nbytes for _, value in flat)
        self._model = model
        self._cache: Any = None

    def run(self, tokens: int) -> float:
        """Milliseconds of a pass over so many tokens; the second pass of two, so that the cache has its memory."""
        import mlx.core as mx
        from mlx_lm.models.cache import make_prompt_cache

        if self._cache is None or tokens > 1:
            self._cache = make_prompt_cache(self._model)
            mx.eval(self._model(mx.zeros((1, tokens), mx.int32), cache=self._cache))
        begin = time.perf_counter()
        mx.eval(self._model(mx.zeros((1, tokens), mx.int32), cache=self._cache))
        return (time.perf_counter() - begin) * 1000
