"""bench hits: the overhead of a streamed layer when every expert that a token uses is cached, or `misses` of them are not.

The figure is that of `engine.bench.beside.child.bookkeeping`: the wait for reads is not part of it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engine.engine import load
from engine.errors import KnobError
from engine.knobs import Knobs
from engine.plan.footprint import footprint

from ..beside.child.bookkeeping import Bookkeeping
from ..contender import spread

TOKENS = 200


def half_cached(model: Path, knobs: Knobs) -> Knobs:
    """`knobs` with a cache of half of the experts."""
    sizes = footprint(model, knobs)
    return Knobs.from_mapping({**knobs.as_dict(), "cache_gb": (sizes.one_token_gb + sizes.all_experts_gb) / 2})


def bench_hits(model: Path, knobs: Knobs, *, rounds: int, misses: int = 0) -> dict[str, Any]:
    """Microseconds per layer and token: median and quartiles of `rounds` rounds of 200 tokens.

    Raises `KnobError` if no layer can miss `misses` experts a token."""
    with load(model, half_cached(model, knobs)) as engine:
        try:
            bookkeeping = Bookkeeping(engine, misses)
        except ValueError as e:
            raise KnobError(f"bench hits: {model}: {e}") from e
        turns = [bookkeeping.turn(TOKENS) for _ in range(rounds)]
    low, middle, high = spread([us for us, _ in turns])
    what = f"{turns[-1][1]:g} misses, reads aside" if misses else "all hits"
    print(f"{len(bookkeeping.layers)} layers, top-{bookkeeping.top_k}, {what}: ", end="")
    print(f"{middle:.1f} us per layer and token ({low:.1f} .. {high:.1f})")
    return {
        "bench": "hits", "layers": len(bookkeeping.layers), "top_k": bookkeeping.top_k, "misses": turns[-1][1],
        "us_per_layer": [low, middle, high],
    }  # fmt: skip
