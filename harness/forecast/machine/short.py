"""Short: models of a shape's widths, heads and formats with few layers and experts, for the probes of this machine, and the
rounds that a probe measures."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from engine.errors import CheckpointError, HeadraceError, first_line
from engine.shapes.shape import Shape

LEAST_ROUNDS, OUTLIER = 3, 10.0


def shortened(shape: Shape, layers: int, part: int) -> Shape:
    """The shape with so many layers, as many experts as two tokens use in each, and 1/`part` of the vocabulary."""
    experts = min(shape.experts, max(16, -(-2 * shape.top_k // 16) * 16))
    total = int(shape.built.layers)

    def short(config: Mapping[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key, value in config.items():
            of_layers = isinstance(value, list) or (isinstance(value, str) and "pattern" in key)
            if isinstance(value, Mapping):
                out[key] = short(value)
            elif value == total and "layer" in key:
                out[key] = layers
            elif value == shape.experts and "expert" in key:
                out[key] = experts
            elif value == shape.built.vocabulary:
                out[key] = value // part
            elif of_layers and len(value) == total:
                out[key] = value[:layers]
            else:
                out[key] = copy.deepcopy(value)
        return out

    return dataclasses.replace(shape, config=short(shape.config))


def rounds(run: Callable[[], Sequence[float]], most: int, longest_s: float) -> list[Sequence[float]]:
    """The times of `run`, ms, of up to `most` rounds, or of as many as take `longest_s` at the speed of the fastest one.

    A GPU compiles kernels when a pass first needs them, also after many passes, such as when the cache of keys and values
    grows. Rounds with a time above `OUTLIER` times its median are left out, and take no time from the others.
    """
    found = [run() for _ in range(LEAST_ROUNDS)]
    while len(found) < most and len(found) * min(map(sum, found)) < longest_s * 1e3:
        found.append(run())
    limits = [OUTLIER * statistics.median(times) for times in zip(*found, strict=True)]
    return [one for one in found if all(time <= limit for time, limit in zip(one, limits, strict=True))]


@contextlib.contextmanager
def probing(what: str) -> Iterator[None]:
    """Around a probe: `HeadraceError` for whatever MLX and mlx-lm raise for a shape that they cannot run."""
    try:
        yield
    except HeadraceError:
        raise
    except Exception as e:
        raise HeadraceError(f"{what} cannot be measured here ({first_line(e)}); name a profile: device=NAME") from e


def least_depth(shape: Shape) -> int:
    """Layers of the shallowest model with routed experts that mlx-lm builds: in some architectures it needs a layer of each
    kind of attention. Raises `HeadraceError` if there is none below the whole model."""
    total = int(shape.built.layers)
    first = min(switch.number for switch in shape.switches) + 1
    for layers in range(first, total):
        try:
            if shortened(shape, layers, 1).built.layers == layers:
                return layers
        except CheckpointError:
            continue
    if first == total:
        return total
    raise HeadraceError(
        f"mlx-lm builds no part of {shape.name}, so that no layer can be measured; name a profile: device=NAME"
    )
