"""Enlarge: a larger cache of experts for what is scored after the timed part.

A lossless setting changes no logit, so what follows the clock need not pass through the timed setting's small cache, where
each miss is read, and quantized again if a knob asks for other bits. The slots are released and made anew: for every expert
if memory allows, else as many as fit. Weights that are always resident, prompt caches, lossy knobs and counters stay.

It is done only if it saves reads: those that the timed setting would need for the rest are estimated from its misses while
it was timed, and those of prompts as if routing were even. Misses are taken to fall with the share of experts that is not
cached.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import mlx.nn as nn

from engine.checkpoint.checkpoint import Checkpoint
from engine.knobs import GB, Knobs
from engine.model.backend import peak_bytes
from engine.plan.banks import BankPlan, plan_banks
from engine.plan.bits import BitsPlan
from engine.plan.footprint import ROOM, cache_within, footprint, weights_of
from engine.routing.forced import ForcedRouting
from engine.stats import Stats
from engine.streaming.install import decode_state_for, enlarge_layers, filling
from engine.streaming.passes import Passes
from engine.system.memory import available_bytes

from .given import Streamed

Text = tuple[list[int], list[int]]  # tokens of prompt and continuation
SPARE = 0.1  # share of the limit that stays free: predictions of the peak are within 10 % (docs/memory.md)


class Enlargeable(Streamed, Protocol):
    """What is needed of an engine (`engine.Engine`)."""

    checkpoint: Checkpoint
    model: nn.Module
    knobs: Knobs
    bits: BitsPlan
    passes: Passes
    forced: ForcedRouting | None
    enlarged: bool

    @property
    def slots(self) -> int: ...


@contextmanager
def scoring_with(
    engine: Enlargeable, texts: Sequence[Text], limit_gb: float | None, begun: int, timed: Stats
) -> Iterator[float]:  # fmt: skip
    """Around scoring without a clock: enlarge the cache first, and yield the share of the experts that it holds.

    `texts`: token ids of prompts and continuations, of which `begun` were begun and the tokens that `timed` counts decoded.
    `limit_gb`: see `enlarge`; the cache stays as it is if it is None. Raises `ReadError`.
    """
    if limit_gb is not None:
        decoded = timed.tokens if begun else 0
        left = sum(len(continuation) - 1 for _, continuation in texts) - decoded
        longest = max(len(prompt) + len(continuation) for prompt, continuation in texts)
        enlarge(engine, limit_gb, Rest([len(prompt) for prompt, _ in texts[begun:]], left, longest), timed)
    with engine.passes.unclocked():
        yield engine.slots / engine.checkpoint.experts


@dataclass(frozen=True)
class Rest:
    """What is left to compute: the tokens of each prompt, tokens to decode, and the tokens of the longest text."""

    prompts: Sequence[int]
    decoded: int
    context: int


def enlarge(engine: Enlargeable, limit_gb: float, rest: Rest, timed: Stats) -> None:
    """Give an engine the largest cache with which its process stays within `limit_gb`, if that saves reads for the `rest`.

    `timed`: counters of tokens that were decoded. The cache stays as it is if a knob's effect depends on it, with forced
    routing, and while a trace is written. No prefetch, window or `ssd_gbps` remains, so that the engine can
    measure no more. Raises `ReadError`.
    """
    complete = engine.state is None or engine.slots == engine.checkpoint.experts
    if complete or engine.depends_on_cache or engine.forced is not None or engine.passes.trace is not None:
        return
    knobs = _knobs(engine, limit_gb, rest.context)
    if knobs is None:
        return
    plans = plan_banks(engine.checkpoint, knobs, engine.bits)
    if _saves(engine, plans, rest, timed):
        _replace(engine, knobs, plans)


def _knobs(engine: Enlargeable, limit_gb: float, context: int) -> Knobs | None:
    """The knobs with the largest cache within the limit; None if it is no larger than the one in use."""
    old = engine.knobs
    weights = weights_of(engine.checkpoint, old)
    limit_gb *= 1 - SPARE
    room = min(limit_gb - peak_bytes() / GB, ROOM * available_bytes() / GB) + weights.cached_gb
    knobs = Knobs(
        **old.lossy, cache_gb=cache_within(weights, room), prefill_chunk=old.prefill_chunk, io_mode=old.io_mode,
        verify_reads=old.verify_reads,
    )  # fmt: skip
    over = footprint(engine.checkpoint, knobs, context).predicted_peak_gb - limit_gb
    if over > 0:
        knobs = dataclasses.replace(knobs, cache_gb=cache_within(weights, (knobs.cache_gb or 0.0) - over))
    return knobs if (knobs.cache_gb or 0.0) > weights.cached_gb else None


def _saves(engine: Enlargeable, plans: Sequence[BankPlan], rest: Rest, timed: Stats) -> bool:
    """Whether the slots of `plans` save more reads of experts than it takes to fill them."""
    layers, top_k = engine.checkpoint.layers, engine.checkpoint.top_k
    experts, slots = engine.checkpoint.experts, sum(plan.slots for plan in plans)
    asked = sum(layer.experts * (1 - (1 - top_k / layer.experts) ** n) for layer in layers for n in rest.prompts)
    missing = 1 - engine.slots / experts
    decoded = rest.decoded * (timed.misses + timed.prefetch_issued) / max(1, timed.tokens)
    fewer = 1 - (1 - slots / experts) / missing  # share of the misses that the larger cache avoids
    return (asked * missing + decoded) * fewer > slots


def _replace(engine: Enlargeable, knobs: Knobs, plans: list[BankPlan]) -> None:
    assert engine.state is not None
    engine.enlarged = True
    engine.passes.await_queued()
    engine.state.reader.close()
    if engine.windows is not None:
        engine.windows.remove()
        engine.windows = None
    uses = engine.state.uses
    engine.state = decode_state_for(engine.checkpoint, knobs, engine.passes.stats)
    engine.state.uses[:] = uses
    engine.layers = enlarge_layers(engine.model, engine.checkpoint, knobs, plans, engine.state, engine.layers)
    engine.passes.use(engine.layers, engine.state)
    with filling(engine.layers, plans):
        pass
