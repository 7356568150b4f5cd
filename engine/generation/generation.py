"""Generation: the loop that continues a prompt token by token.

mlx-lm's `generate_step` queues the pass after a token before it yields the token. A streamed model computes inside the call,
so there the first token would come a whole pass late. This loop yields first, and saves the pass after the last token.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import mlx.core as mx

from engine.errors import HeadraceError
from engine.measure.not_finite import LogitsError

from .context import Context
from .prompts import refuse_too_long
from .sampling import Sampling
from .stop_strings import StopStrings


def never() -> bool:
    return False


class Generation:
    """A text that continues `prompt`, a sequence of token ids. Iterate over it once for the text, then read its figures.

    `finish` is why the text ended: `end` (an end-of-text token), `stop` (a stop string), `length` (max_tokens), `context`
    (the model's longest context) or `interrupted`.

    `context` may hold a beginning of the prompt already. `limit` is the model's longest context in tokens. `stopped` is
    called between two forward passes and ends the text by returning True. Raises `HeadraceError` for an empty prompt and for
    one that the limit does not allow, and `LogitsError` at the first logits that are not finite. The caller sets the seed,
    so that a conversation does not repeat its random numbers in each turn.
    """

    def __init__(
        self,
        context: Context,
        tokenizer: Any,
        prompt: Sequence[int],
        sampling: Sampling,
        *,
        limit: int | None = None,
        copy_at: int | None = None,
        stopped: Callable[[], bool] = never,
    ) -> None:
        if not prompt:
            raise HeadraceError("the prompt is empty; give at least one character")
        refuse_too_long(len(prompt), limit)
        self.prompt = prompt
        self.reused = 0  # tokens of the prompt that were in the context
        self.tokens: list[int] = []
        self.text = ""
        self.finish: str | None = None
        self.first_token_s: float | None = None
        self.decode_s = 0.0  # from the first token to the last
        self.hit_rate: float | None = None  # of this text's requests; None without any, as when everything is resident
        self.bytes_read = 0
        self._context = context
        self._tokenizer = tokenizer
        self.sampling = sampling
        self._most = sampling.max_tokens if limit is None else min(sampling.max_tokens, limit - len(prompt))
        self._copy_at = copy_at
        self._stopped = stopped
        self._noted = False  # that the logits are not finite

    @property
    def tok_s(self) -> float | None:
        """Decoding speed, from the first token on; None for fewer than two tokens."""
        return (len(self.tokens) - 1) / self.decode_s if len(self.tokens) > 1 and self.decode_s > 0 else None

    def __iter__(self) -> Iterator[str]:
        """Yield the text of each token, which is empty while a character or a stop string is incomplete."""
        stats = self._context.stats
        hits, misses, bytes_read = stats.hits, stats.misses, stats.bytes_read
        try:
            yield from self._pieces()
        finally:
            requests = stats.hits - hits + stats.misses - misses
            self.hit_rate = (stats.hits - hits) / requests if requests else None
            self.bytes_read = stats.bytes_read - bytes_read

    def _pieces(self) -> Iterator[str]:
        stop, detokenizer = StopStrings(self.sampling.stop), self._tokenizer.detokenizer
        for token in self._next_tokens():
            detokenizer.add_token(token)
            yield self._add(stop.feed(detokenizer.last_segment))
            if stop.found is not None:
                self.finish = "stop"
                return
        detokenizer.finalize()
        yield self._add(stop.feed(detokenizer.last_segment) + stop.flush())
        if stop.found is not None:
            self.finish = "stop"

    def _next_tokens(self) -> Iterator[int]:
        begin = time.perf_counter()
        self.reused = self._context.reuse(self.prompt)
        if not self._context.prefill(self.prompt[:-1], copy_at=self._copy_at, stopped=self._stopped) or self._stopped():
            self.finish = "interrupted"
            return
        logits = self._context.logits(self.prompt[-1], decoding=False)
        sampler = self.sampling.sampler(logits.shape[-1])
        processors = self.sampling.logits_processors()
        while True:
            if processors:
                so_far = mx.array([*self.prompt, *self.tokens])
                for process in processors:
                    logits = process(so_far, logits)
            # Finite if and only if no logit is NaN or infinite and one is above minus infinity. It is computed anyway.
            total = mx.logsumexp(logits, axis=-1, keepdims=True)
            chosen = sampler(logits - total)[0]
            mx.eval(chosen, total)
            token, value = int(chosen), float(total.item())  # type: ignore[arg-type]
            if not math.isfinite(value):
                self._refuse()
            now = time.perf_counter()
            if self.first_token_s is None:
                self.first_token_s = now - begin
            if token in self._tokenizer.eos_token_ids:
                self.finish = "end"
                return
            self.tokens.append(token)
            self.decode_s = now - begin - self.first_token_s
            yield token
            if len(self.tokens) == self._most:
                self.finish = "length" if self._most == self.sampling.max_tokens else "context"
                return
            if self._stopped():
                self.finish = "interrupted"
                return
            logits = self._context.logits(token, decoding=True)

    def _refuse(self) -> None:
        """Raise `FigureError` for logits that are not finite, with the first layer whose output is not. Where config.json
        has such a number itself, they are what mlx-lm computes from it, and a note says so once."""
        ids = [*self.prompt, *self.tokens]
        if not self._context.stated:
            raise self._context.explained(LogitsError(f"the logits after {len(ids)} tokens are not finite"), ids)
        if not self._noted:
            self._noted = True
            keys = ", ".join(self._context.stated)
            print(
                f"note: the logits are not finite, and the text means nothing; config.json has no finite {keys}, and mlx-lm "
                "computes with that",
                file=sys.stderr,
            )

    def _add(self, piece: str) -> str:
        self.text += piece
        return piece
