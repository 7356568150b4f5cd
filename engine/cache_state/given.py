"""Given state: leaves the experts' cache as real passes over recorded prompts would, for the price of what it then holds.

A prefill reads nearly every expert of every layer to leave a few in the slots. Which ones follows from the routing and the
lossless knobs alone. So the bookkeeping of the passes is done first, without a read (`dry`), and then only the experts that
are in slots and whose bytes are not there are read (`fill`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from engine.errors import HeadraceError
from engine.streaming.decode_state import DecodeState
from engine.streaming.layer import StreamedLayer
from engine.streaming.window.speculate import SpeculativeWindows

from .dry import dry_passes
from .fill import Filled, fill


class Streamed(Protocol):
    """What is needed of an engine (`engine.Engine`). `filled`: what was read to reach the states of a measurement."""

    layers: list[StreamedLayer]
    state: DecodeState | None
    windows: SpeculativeWindows | None
    filled: Filled

    @property
    def depends_on_cache(self) -> list[str]: ...


def after_passes(engine: Streamed, prompts: Sequence[np.ndarray], chunk: int) -> Filled:
    """Bring the experts' cache to its state after passes of `chunk` tokens over `prompts`, one after the other.

    `prompts`: each the routers' choices, int [tokens, layers, top-k], as the engine's own passes made them; -1 where a layer
    was not computed. Slots, uses, warmth and the token count come out as after the real passes, from whatever state the
    cache was in. The counters of `stats` do not change. With every expert resident nothing is done.

    It is exact where nothing else decides what is cached: not for passes of one token with `prefetch` or `sync_window`,
    which also request what they predict. Raises `HeadraceError` for choices that do not fit the model, and for knobs whose
    choices depend on the cache. After an error some of the experts have lost their slots.
    """
    state = engine.state
    if state is None or all(layer.complete for layer in engine.layers):
        return Filled()
    if engine.depends_on_cache:
        names = " and ".join(engine.depends_on_cache)
        raise HeadraceError(f"the experts that a prompt uses with {names} depend on what is cached; prefill for real")
    for experts in prompts:
        _check(state, experts)
    before = state.stats.copy()
    pools = [pool for layer in engine.layers if not layer.complete for pool in layer.cache.pools]
    try:
        try:
            for pool in pools:
                pool.dry = True
            for experts in prompts:
                dry_passes(engine.layers, state, experts, chunk)
        except BaseException:
            for pool in pools:
                pool.disown()
            raise
        finally:
            for pool in pools:
                pool.dry = False
        filled = fill(pools, state.stats)
    finally:
        state.stats.restore(before)
    if engine.windows is not None:
        engine.windows.interrupted()
    return filled


def dry_prefill(engine: Streamed, experts: np.ndarray, chunk: int) -> Filled:
    """Leave the experts' cache as a prefill of one prompt in chunks of `chunk` tokens would; see `after_passes`."""
    return after_passes(engine, [experts], chunk)


def empty(engine: Streamed) -> None:
    """Empty the experts' cache: only layers that hold every expert, and pinned experts, keep their slots. No queued graph
    may still read the slots. Warmth and token count begin anew; `uses` and the counters continue."""
    if engine.state is None:
        return
    engine.state.reset()
    for layer in engine.layers:
        layer.reset()
    if engine.windows is not None:
        engine.windows.interrupted()


def _check(state: DecodeState, experts: np.ndarray) -> None:
    layers, number = state.slot_of.shape
    if experts.ndim != 3 or experts.shape[1] != layers or experts.max(initial=-1) >= number or experts.min(initial=0) < -1:
        raise HeadraceError(
            f"recorded routing {list(experts.shape)} with experts up to {experts.max(initial=-1)} does not fit a model of "
            f"{layers} layers with {number} experts; record it again on this model"
        )
