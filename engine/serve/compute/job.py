"""Job: one request on its way through the generation thread, with its clock and its share of the engine's counters.

mlx-lm's generation thread puts everything that it has for a request on a queue of that request. A job takes the place of
this queue. It therefore sees each step on the generation thread itself, before the next one begins: that is where a request
is cancelled, where its random numbers are seeded and where its figures are taken.
"""

from __future__ import annotations

import math
import queue
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.server import CompletionRequest, GenerationArguments, GenerationContext, Response

from engine.measure.not_finite import LogitsError
from engine.stats import Stats


class Cancelled(Exception):
    """Ends a request whose client is gone."""


@dataclass(frozen=True)
class Figures:
    """Figures of one finished request. `hit_rate` and `bytes_read` count everything computed in the request's time."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    queue_s: float
    prompt_s: float
    decode_s: float
    ttft_s: float
    hits: int
    misses: int
    bytes_read: int
    shared: bool

    @property
    def processed_tokens(self) -> int:
        """Prompt tokens that were computed, not taken from the prompt cache."""
        return max(0, self.prompt_tokens - self.cached_tokens)

    @property
    def hit_rate(self) -> float | None:
        requests = self.hits + self.misses
        return self.hits / requests if requests else None

    @property
    def decode_tok_s(self) -> float | None:
        return self.completion_tokens / self.decode_s if self.completion_tokens and self.decode_s > 0 else None

    @property
    def prompt_tok_s(self) -> float | None:
        return self.processed_tokens / self.prompt_s if self.processed_tokens and self.prompt_s > 0 else None


class Job:
    """One request. The generation thread calls `put`; the request's own thread calls `take` and `cancel`.

    `tokenized` is the prompt as mlx-lm's `_tokenize` returns it. `done` is called once, when the generation thread has
    finished with the request. `alone`: no other request may compute meanwhile.
    """

    def __init__(
        self, request: CompletionRequest, args: GenerationArguments, tokenized: tuple[Any, ...], stats: Stats, *, alone: bool
    ) -> None:
        self.request = request
        self.args = args
        self.tokenized = tokenized
        self.alone = alone
        self.single = False  # served outside the batch: the model's caches cannot be merged
        self.shared = False
        self.context: GenerationContext | None = None
        self.cancelled = False
        self.finished = False
        self.on_finish: Callable[[Job], None] = lambda _: None
        self._stats = stats
        self._items: queue.Queue[Any] = queue.Queue()
        self._tokens = 0
        self._arrived = self._started = self._prefilled = self._first = self._last = time.perf_counter()
        self._before = self._after = self._counters()

    @property
    def messages(self) -> list[Any]:
        """mlx-lm looks for images in it; there are none."""
        return self.request.messages

    def put(self, item: Any) -> None:
        """Pass on a context, a progress, a token, an error, or the end (None). Generation thread only."""
        now = time.perf_counter()
        if isinstance(item, GenerationContext):
            self.context = item
            self._started = self._prefilled = now
            self._before = self._after = self._counters()
            if self.args.sampling.temperature > 0:  # without a seed, not the continuation of an earlier seed either
                mx.random.seed(secrets.randbits(64) if self.args.seed is None else self.args.seed)
        elif isinstance(item, tuple) and not self._tokens:
            self._prefilled = now
        elif isinstance(item, Response) and not math.isfinite(item.logprob):
            count = len(self.tokenized[0]) + self._tokens
            item = LogitsError(f"the logits after {count} tokens are not finite; the model, or a lossy knob, is broken")
            self.cancelled = True
        elif isinstance(item, Response):
            self._last, self._after = now, self._counters()
            self._first = self._first if self._tokens else now
            self._tokens += 1
        self._items.put(item)
        if self.cancelled and self.context is not None and item is not None:
            self.context.stop()  # mlx-lm looks at this right after `put`
            if self.single and isinstance(item, tuple):
                raise Cancelled  # its prefill has no other way out
            if not self.single and not isinstance(item, GenerationContext):
                self._finish()
        if item is None or isinstance(item, Exception):
            self._finish()

    def take(self, timeout: float) -> Any:
        """The next item. Raises `queue.Empty` after `timeout` seconds."""
        return self._items.get(timeout=timeout)

    def cancel(self) -> None:
        """Stop computing this request at its next token or prefill step."""
        self.cancelled = True

    def fail(self, error: Exception) -> None:
        """Give the request's thread an error, and stop computing."""
        self.cancelled = True
        self._items.put(error)

    def figures(self) -> Figures:
        """The figures so far."""
        prompt = len(self.tokenized[0])
        cached = self.context.prompt_cache_count if self.context is not None else 0
        prefilled = self._prefilled if self._prefilled > self._started else self._first
        hits, misses, nbytes = (after - before for after, before in zip(self._after, self._before, strict=True))
        return Figures(
            prompt_tokens=prompt,
            cached_tokens=max(0, cached),
            completion_tokens=self._tokens,
            queue_s=max(0.0, self._started - self._arrived),
            prompt_s=max(0.0, prefilled - self._started),
            decode_s=max(0.0, self._last - prefilled),
            ttft_s=max(0.0, self._first - self._arrived),
            hits=hits,
            misses=misses,
            bytes_read=nbytes,
            shared=self.shared,
        )

    def _finish(self) -> None:
        if not self.finished:
            self.finished = True
            self.on_finish(self)

    def _counters(self) -> tuple[int, int, int]:
        return self._stats.hits, self._stats.misses, self._stats.bytes_read
