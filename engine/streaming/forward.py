"""Forward: prefill and decode passes over a loaded model.

Every pass is evaluated before it returns, so that no queued graph still reads a slot when the next pass fills it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from engine.knobs import Knobs
from engine.measure.not_finite import LogitsError, explained, first_layer
from engine.measure.timed_pass import Scored
from engine.plan.chunk import parts_of

from .passes import Passes


class Forward:
    """Forward passes over one model. `chunk` is the number of a prompt's tokens in one pass.

    `name` and the lossy knobs are for the message of logits that are not finite; `stated` are the keys of config.json whose
    numbers are not finite themselves. `in_order` says that a layer's output is right when the layer returns, which it is not
    within a window of several layers.
    """

    def __init__(
        self, model: nn.Module, passes: Passes, knobs: Knobs, *, chunk: int, name: str, in_order: bool,
        stated: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.stated = stated
        self._name, self._lossy, self._in_order = name, knobs.lossy, in_order
        self.model = model
        self.stats = passes.stats
        self._passes = passes
        self.chunk = chunk

    def begin(self) -> None:
        """Start a text. The same tokens then give the same logits, whatever was computed before."""
        self._passes.begin()

    def prefill(self, ids: list[int], cache: list[Any]) -> Iterator[mx.array]:
        """Yield the logits of a prompt, chunk by chunk, float32 [tokens, vocab]."""
        for part in parts_of(len(ids), self.chunk):
            logits = self.logits(ids[part], cache)
            mx.eval([c.state for c in cache])
            yield logits

    def prefill_cache(self, ids: list[int], cache: list[Any]) -> None:
        """Prefill without logits. The last layer's experts and the head are neither read nor computed."""
        for part in parts_of(len(ids), self.chunk):
            chunk = mx.array([ids[part]])
            self._passes.run(self.model, chunk, cache, phase="prefill", last_layer=False)
            mx.eval([c.state for c in cache])

    def decode(self, token: int, cache: list[Any]) -> mx.array:
        """Return the logits after one decoded token, float32 [1, vocab]; its time is recorded in `stats`."""
        with self.stats.timed_token():
            return self.logits([token], cache, "decode")

    def logits(self, ids: list[int], cache: list[Any], phase: str = "prefill") -> mx.array:
        """Return the logits after each of `ids`, evaluated, float32 [tokens, vocab]."""
        logits = self._passes.run(self.model, mx.array([ids]), cache, phase=phase)[0].astype(mx.float32)
        mx.eval(logits)
        return logits

    def explained(self, error: LogitsError, texts: Iterable[list[int]]) -> LogitsError:
        """An error with the first layer whose output for one of `texts` is not finite, and a remedy."""

        def run() -> Iterator[mx.array]:
            self.begin()
            for ids in texts:
                yield from self.prefill(ids, make_prompt_cache(self.model))

        return explained(error, self._name, first_layer(self.model, run) if self._in_order else "", self._lossy)

    def teacher_forced(self, prompt: list[int], continuation: list[int]) -> tuple[Scored, Scored]:
        """Return the pass over a text's prompt, in chunks, and the one over its continuation, token by token.

        Both are lazy and must be exhausted in this order.
        """
        cache = make_prompt_cache(self.model)
        return self.prompt(prompt, continuation[0], cache), self.continuation(continuation, cache)

    def prompt(self, prompt: list[int], following: int, cache: list[Any]) -> Scored:
        """The pass over a text's prompt, in chunks; `following` is the token after it."""
        targets = iter([*prompt[1:], following])
        return ((logits, list(itertools.islice(targets, len(logits)))) for logits in self.prefill(prompt, cache))

    def continuation(self, continuation: list[int], cache: list[Any]) -> Scored:
        """The pass over a text's continuation, token by token, with the `cache` that its prompt has filled by then."""
        return ((self.decode(token, cache), [target]) for token, target in itertools.pairwise(continuation))

    def warm_up(self, texts: list[tuple[list[int], list[int]]], tokens: int) -> None:
        """Decode `tokens` tokens of the texts' continuations, cycling through the texts; a trace tells them apart.

        Each text's prompt is first cut to that many tokens and prefilled. This compiles kernels and touches memory before
        the clock starts.
        """
        trace = self._passes.trace
        if trace is not None:
            trace.warm_up = True
        for prompt, continuation in itertools.cycle(texts):
            if tokens <= 0:
                break
            cache = make_prompt_cache(self.model)
            list(self.prefill(prompt[:tokens], cache))
            for token in continuation[:tokens]:
                self.decode(token, cache)
            tokens -= len(continuation)
        if trace is not None:
            trace.warm_up = False
