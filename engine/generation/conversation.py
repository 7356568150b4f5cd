"""Conversation: turns with one model, each of which computes only what is new.

A turn's prompt is the whole conversation through the chat template. What its tokens have in common with the turn before it
is in the prompt cache already. Templates that drop the reasoning of earlier answers change the tokens after the last
question, so there the last answer is computed again, without its reasoning.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import mlx.core as mx

from engine.errors import HeadraceError
from engine.streaming.forward import Forward

from .context import Context
from .generation import Generation, never
from .prompts import FALLBACK_STOP, render, split_answer
from .sampling import Sampling
from .trimming import common_prefix


class Conversation:
    """The turns so far. `messages` are those that the next prompt repeats, `answer` is the last turn's generation.

    `limit` is the model's longest context in tokens; `template_args` are arguments of the chat template. Without a chat
    template, an answer also ends where the model begins the user's next turn itself.
    """

    def __init__(
        self,
        forward: Forward,
        tokenizer: Any,
        sampling: Sampling,
        *,
        limit: int | None = None,
        system: str | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> None:
        own = tokenizer.has_chat_template
        self.sampling = sampling if own else dataclasses.replace(sampling, stop=(*sampling.stop, FALLBACK_STOP))
        self.limit = limit
        self._forward = forward
        self._tokenizer = tokenizer
        self._template_args = dict(template_args or {})
        self.reset(system)

    def reset(self, system: str | None = None) -> None:
        """Start anew, with the first random numbers of the seed and an empty cache, so that the same messages get the same
        answers."""
        self.messages: list[dict[str, str]] = [] if system is None else [{"role": "system", "content": system}]
        self.answer: Generation | None = None
        self._context = Context(self._forward)
        self._forward.begin()
        mx.random.seed(self.sampling.seed)

    def ask(self, text: str, stopped: Callable[[], bool] = never) -> Iterator[str]:
        """Return the answer to the user's `text`, piece by piece; `answer` has its figures.

        The turn becomes part of the conversation when the iteration ends, also if the caller or `stopped` ends it early with
        a part of the answer. After an error, and without any token, it does not. Raises `HeadraceError` if the conversation
        is longer than the model's context.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt = render(self._tokenizer, messages, **self._template_args)
        generation = Generation(
            self._context,
            self._tokenizer,
            prompt,
            self.sampling,
            limit=self.limit,
            copy_at=self._end_of_messages(messages, prompt),
            stopped=stopped,
        )
        self.answer = generation
        return self._turn(messages, generation)

    def _turn(self, messages: list[dict[str, str]], generation: Generation) -> Iterator[str]:
        try:
            yield from generation
        except GeneratorExit:
            self._add(messages, generation)
            raise
        self._add(messages, generation)

    def _add(self, messages: list[dict[str, str]], generation: Generation) -> None:
        if generation.first_token_s is None:
            return
        content, reasoning = split_answer(self._tokenizer, generation.prompt, generation.text)
        if not self._tokenizer.has_chat_template:
            content = content.strip()  # the form without a template puts a blank before it
        answer = {"role": "assistant", "content": content}
        self.messages = [*messages, answer | ({"reasoning_content": reasoning} if reasoning else {})]

    def _end_of_messages(self, messages: list[dict[str, str]], prompt: list[int]) -> int | None:
        """Number of the prompt's tokens before the template's beginning of an answer, which the next prompt may change."""
        with suppress(HeadraceError):  # some templates need a beginning of an answer
            arguments = {**self._template_args, "add_generation_prompt": False}
            return common_prefix(render(self._tokenizer, messages, **arguments), prompt)
        return None
