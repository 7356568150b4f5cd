"""Forward: prefill and decode passes over a loaded model, with their counters and their trace.

Every pass is evaluated before it returns, so that no queued graph still reads a slot when the next pass fills it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from engine.measure.timed_pass import Scored
from engine.routing.record import TraceWriter
from engine.stats import Stats

from .decode_state import DecodeState
from .layer import StreamedLayer


class Forward:
    """Forward passes over one model. `layers` and `state` are empty and None while every expert is resident.

    `reset_first`: a knob's decisions depend on what is cached, so every text starts with the cache as it was after loading.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: list[StreamedLayer],
        state: DecodeState | None,
        *,
        top_k: int,
        chunk: int,
        reset_first: bool,
    ) -> None:
        self.model = model
        self.stats = state.stats if state is not None else Stats()
        self.trace: TraceWriter | None = None
        self._layers = layers
        self._state = state
        self.chunk = chunk
        self._reset_first = reset_first
        self._sure_hits = top_k * sum(layer.complete for layer in layers)  # per token

    def begin(self) -> None:
        """Start a text. The same tokens then give the same logits, whatever was computed before."""
        if self._state is not None and self._reset_first:
            self._state.reset()
            for layer in self._layers:
                layer.reset()

    def prefill(self, ids: list[int], cache: list[Any]) -> Iterator[mx.array]:
        """Yield the logits of a prompt, chunk by chunk, float32 [tokens, vocab]."""
        for begin in range(0, len(ids), self.chunk):
            logits = self.logits(ids[begin : begin + self.chunk], cache)
            mx.eval([c.state for c in cache])
            yield logits

    def prefill_cache(self, ids: list[int], cache: list[Any]) -> None:
        """Prefill without logits. The last layer's experts and the head are neither read nor computed."""
        if self._state is not None:
            self._state.skip_last = True
        try:
            for begin in range(0, len(ids), self.chunk):
                chunk = ids[begin : begin + self.chunk]
                self.model(mx.array([chunk]), cache=cache)
                mx.eval([c.state for c in cache])
                self._count(len(chunk), "prefill", last_layer=False)
        finally:
            if self._state is not None:
                self._state.skip_last = False

    def decode(self, token: int, cache: list[Any]) -> mx.array:
        """Return the logits after one decoded token, float32 [1, vocab]; its time is recorded in `stats`."""
        with self.stats.timed_token():
            return self.logits([token], cache, "decode")

    def logits(self, ids: list[int], cache: list[Any], phase: str = "prefill") -> mx.array:
        """Return the logits after each of `ids`, evaluated, float32 [tokens, vocab]."""
        logits = self.model(mx.array([ids]), cache=cache)[0].astype(mx.float32)
        mx.eval(logits)
        self._count(len(ids), phase)
        return logits

    def teacher_forced(self, prompt: list[int], continuation: list[int]) -> tuple[Scored, Scored]:
        """Return the pass over a text's prompt, in chunks, and the one over its continuation, token by token.

        Both are lazy and must be exhausted in this order.
        """
        cache = make_prompt_cache(self.model)
        targets = iter([*prompt[1:], continuation[0]])
        return (
            ((logits, list(itertools.islice(targets, len(logits)))) for logits in self.prefill(prompt, cache)),
            ((self.decode(token, cache), [target]) for token, target in itertools.pairwise(continuation)),
        )

    def warm_up(self, texts: list[tuple[list[int], list[int]]], tokens: int) -> None:
        """Decode `tokens` tokens of the texts' continuations outside the trace, cycling through the texts.

        Each text's prompt is first cut to that many tokens and prefilled. This compiles kernels and touches memory before
        the clock starts.
        """
        trace, self.trace = self.trace, None
        for prompt, continuation in itertools.cycle(texts):
            if tokens <= 0:
                break
            cache = make_prompt_cache(self.model)
            list(self.prefill(prompt[:tokens], cache))
            for token in continuation[:tokens]:
                self.decode(token, cache)
            tokens -= len(continuation)
        self.trace = trace

    def _count(self, tokens: int, phase: str, *, last_layer: bool = True) -> None:
        self.stats.tokens += tokens
        if self._state is not None:
            self._state.end_pass(tokens)
            self.stats.hits += tokens * self._sure_hits
        if self.trace is not None:
            self.trace.passed(tokens, phase, last_layer=last_layer)
