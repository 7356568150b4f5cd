"""Context: the tokens that a prompt cache holds, and how much of them the next prompt reuses.

A turn of a conversation repeats the turns before it. Their tokens are not computed again, so their experts are not read
again. Attention's keys and values can be cut to any prefix. The states of recurrent layers and of sliding windows cannot, so
a copy of these, and only these, is kept at the end of the last prompt.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

from engine.measure.not_finite import LogitsError
from engine.stats import Stats
from engine.streaming.forward import Forward

from .trimming import always_trimmable, common_prefix, trimmable


class Context:
    """The prompt cache of one text. `tokens` are the ids that it holds."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self.clear()

    @property
    def stats(self) -> Stats:
        """The counters of the engine that computes."""
        return self._forward.stats

    def clear(self) -> None:
        """Forget every token."""
        self._cache: list[Any] = make_prompt_cache(self._forward.model)
        self.tokens: list[int] = []
        self._copied_at = 0
        self._copies: list[Any] | None = None

    def reuse(self, ids: Sequence[int]) -> int:
        """Keep the longest part of the cache that is a prefix of `ids`, without its last token; return its length.

        The last token is always computed, since its logits are needed.
        """
        common = min(common_prefix(self.tokens, ids), len(ids) - 1)
        extra = len(self.tokens) - common
        if extra and trimmable(self._cache):
            trim_prompt_cache(self._cache, extra)
            del self.tokens[common:]
            if common < self._copied_at:
                self._copies = None
        elif extra and self._copies is not None and self._copied_at <= common:
            self._restore()
        elif extra:
            self.clear()
        return len(self.tokens)

    def prefill(self, ids: Sequence[int], *, copy_at: int | None, stopped: Callable[[], bool]) -> bool:
        """Compute `ids[len(self.tokens):]`, chunk by chunk, without logits.

        At `copy_at` tokens, the states that cannot be trimmed are copied for a later `reuse`. Returns False if `stopped()`
        was true between two chunks; the chunks before it are kept.
        """
        while len(self.tokens) < len(ids):
            if stopped():
                return False
            begin = len(self.tokens)
            end = min(begin + self._forward.chunk, len(ids))
            if copy_at is not None and begin < copy_at < end:
                end = copy_at
            with self._undivided():
                self._forward.prefill_cache(list(ids[begin:end]), self._cache)
            self.tokens.extend(ids[begin:end])
            if end == copy_at:
                self._copy()
        return True

    def logits(self, token: int, *, decoding: bool) -> mx.array:
        """Add one token; return the logits after it, float32 [1, vocab]. `decoding` counts it as a decoded token."""
        with self._undivided():
            logits = self._forward.decode(token, self._cache) if decoding else self._forward.logits([token], self._cache)
        self.tokens.append(token)
        return logits

    @property
    def stated(self) -> Sequence[str]:
        """The keys of config.json whose numbers are not finite."""
        return self._forward.stated

    def explained(self, error: LogitsError, ids: list[int]) -> LogitsError:
        """An error with the first layer whose output for `ids` is not finite. The cache is forgotten."""
        self.clear()
        return self._forward.explained(error, [ids])

    @contextmanager
    def _undivided(self) -> Iterator[None]:
        """Forget everything after an error: some layers may hold the token and others not."""
        try:
            yield
        except BaseException:
            self.clear()
            raise

    def _copy(self) -> None:
        if not always_trimmable(self._cache):
            self._copied_at = len(self.tokens)
            self._copies = [None if always_trimmable([c]) else copy.deepcopy(c) for c in self._cache]

    def _restore(self) -> None:
        assert self._copies is not None
        extra = len(self.tokens) - self._copied_at
        for layer, copied in enumerate(self._copies):
            if copied is None:
                self._cache[layer].trim(extra)
            else:
                self._cache[layer] = copy.deepcopy(copied)
        del self.tokens[self._copied_at :]
